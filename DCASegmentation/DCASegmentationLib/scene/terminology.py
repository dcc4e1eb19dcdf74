"""SNOMED CT codes on segments, in the one-line form that Slicer stores with each segment.

The line is written here, without Slicer's terminology files, because these are not part of ``slicer-core``.
"""

from __future__ import annotations

from typing import Any

import slicer

from DCASegmentationLib.organs import Code, Organ

# Names of the lists in Slicer in which its terminology selector finds the codes.
_TYPE_CONTEXT = "Segmentation category and type - DICOM master list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"


def terminology_entry(organ: Organ) -> str:
    """Category, type and side of an organ as Slicer writes a terminology entry.

    Seven fields divided by ``~``: list of types, category, type, modifier of the type, list of regions, region and
    its modifier. A code reads ``scheme^value^meaning``; a field without code is ``^^``.
    """
    return "~".join(
        (_TYPE_CONTEXT, _triple(organ.category), _triple(organ.code), _triple(organ.side), _REGION_CONTEXT, "^^", "^^")
    )


def set_terminology(segment: Any, organ: Organ) -> None:
    """Tag a vtkSegment with the codes of ``organ``."""
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology_entry(organ))


def _triple(code: Code | None) -> str:
    return f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^"
