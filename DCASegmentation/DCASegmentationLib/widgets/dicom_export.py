"""Export of a segmentation as DICOM SEG through Slicer's own plugin and dialog."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

# In Slicer's core since 5.12; the QuantitativeReporting extension provides it under the same name in earlier versions.
_PLUGIN = "DICOMSegmentationPlugin"


def canExport() -> bool:
    """Whether this Slicer can write DICOM SEG."""
    return hasattr(slicer, "qSlicerDICOMExportDialog") and _PLUGIN in getattr(slicer.modules, "dicomPlugins", {})


def unavailableReason(ct: Any | None) -> str:
    """Why a segmentation of this CT cannot be exported as DICOM SEG; empty if it can."""
    if ct is None:
        return _("DICOM SEG refers to the CT's images, but the CT is no longer in the scene.")
    # Slicer's DICOM reader sets this attribute on the volumes it loads.
    if not ct.GetAttribute("DICOM.instanceUIDs"):
        return _("DICOM SEG refers to the CT's images, but this CT was not loaded from DICOM.")
    return ""


def openDialog(segmentation: Any) -> None:
    """Open Slicer's export dialog for this segmentation; it shows and checks the DICOM tags."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    dialog = slicer.qSlicerDICOMExportDialog(None)
    dialog.setMRMLScene(slicer.mrmlScene)
    dialog.execDialog(hierarchy.GetItemByDataNode(segmentation))
