"""Where results go in the subject hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
import vtk

_FOLDER = "DCASegmentation.result"


def add_to_subject_hierarchy(ct_node: Any, segmentation: Any) -> None:
    """Put the segmentation under the patient and study of its CT, where the DICOM SEG export looks for them."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    study = hierarchy.GetItemParent(_get_or_create_item(hierarchy, ct_node)) or hierarchy.GetSceneItemID()
    hierarchy.SetItemParent(_get_or_create_item(hierarchy, segmentation), study)


def add_ct_to_subject_hierarchy(ct_node: Any, patient: str, study: str) -> None:
    """Put a CT under its patient (ID) and study, which are created unless they exist; empty names are left out."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None or not (patient or study):
        return
    parent = hierarchy.GetSceneItemID()
    for name, create in ((patient, hierarchy.CreateSubjectItem), (study, hierarchy.CreateStudyItem)):
        if name:
            parent = hierarchy.GetItemChildWithName(parent, name) or create(parent, name)
    hierarchy.SetItemParent(_get_or_create_item(hierarchy, ct_node), parent)


def place_in_folder(nodes: Sequence[Any], segmentation: Any) -> None:
    """Put nodes that belong to a result into its folder, next to the segmentation; create the folder if necessary."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None or not nodes:
        return
    parent = hierarchy.GetItemParent(_get_or_create_item(hierarchy, segmentation)) or hierarchy.GetSceneItemID()
    name = f"{segmentation.GetName()}: maps and review"
    folder = hierarchy.GetItemChildWithName(parent, name)
    if not folder:
        folder = hierarchy.CreateFolderItem(parent, name)
        hierarchy.SetItemAttribute(folder, _FOLDER, "1")
        hierarchy.SetItemExpanded(folder, False)
    for node in nodes:
        hierarchy.SetItemParent(_get_or_create_item(hierarchy, node), folder)


def remove_empty_folders() -> None:
    """Remove the folders of results that are empty."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    for item in [items.GetId(index) for index in range(items.GetNumberOfIds())]:
        if hierarchy.GetItemAttribute(item, _FOLDER) and not hierarchy.GetNumberOfItemChildren(item):
            hierarchy.RemoveItem(item)


def _get_or_create_item(hierarchy: Any, node: Any) -> int:
    # In Slicer every node has an item; outside Slicer nothing creates one.
    return hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
