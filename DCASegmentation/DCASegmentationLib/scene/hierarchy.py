"""The place of results in the subject hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer


def place_beside(ct_node: Any, segmentation: Any, maps: Sequence[Any]) -> None:
    """Put the segmentation under the patient and study of its CT, and the maps into a folder there.

    Export as DICOM SEG finds patient and study this way. A folder that held earlier maps and is empty now is used
    again.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    study = hierarchy.GetItemParent(_item(hierarchy, ct_node)) or hierarchy.GetSceneItemID()
    hierarchy.SetItemParent(_item(hierarchy, segmentation), study)
    if maps:
        folder = _folder(hierarchy, study, f"{segmentation.GetName()}: experts and uncertainty")
        for node in maps:
            hierarchy.SetItemParent(_item(hierarchy, node), folder)
        hierarchy.SetItemExpanded(folder, False)


def _item(hierarchy: Any, node: Any) -> int:
    # Inside Slicer a node has its item already; outside nothing creates one.
    return hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def _folder(hierarchy: Any, parent: int, name: str) -> int:
    return hierarchy.GetItemChildWithName(parent, name) or hierarchy.CreateFolderItem(parent, name)
