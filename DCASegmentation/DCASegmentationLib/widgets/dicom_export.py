"""Slicer's own way from a segmentation to DICOM SEG: whether it is there, and its dialog."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

# In Slicer's core since 5.12; the extension QuantitativeReporting brings it to earlier versions under the same name.
_PLUGIN = "DICOMSegmentationPlugin"


def canExport() -> bool:
    """Whether this Slicer writes DICOM SEG."""
    return hasattr(slicer, "qSlicerDICOMExportDialog") and _PLUGIN in getattr(slicer.modules, "dicomPlugins", {})


def unavailableReason(ct: Any | None) -> str:
    """Why a segmentation of this CT cannot become DICOM SEG; empty if it can."""
    if ct is None:
        return _("The CT is no longer in the scene, and DICOM SEG refers to its images.")
    # The reader of DICOM series writes them onto the volumes it loads.
    if not ct.GetAttribute("DICOM.instanceUIDs"):
        return _("The CT was not loaded from DICOM, and DICOM SEG refers to its images.")
    return ""


def openDialog(segmentation: Any) -> None:
    """Let the user export this segmentation with Slicer's dialog, which shows and checks the DICOM tags."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    dialog = slicer.qSlicerDICOMExportDialog(None)
    dialog.setMRMLScene(slicer.mrmlScene)
    dialog.execDialog(hierarchy.GetItemByDataNode(segmentation))
