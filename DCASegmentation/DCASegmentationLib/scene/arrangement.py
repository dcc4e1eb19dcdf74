"""What the user meets on opening the scene: a folder with the case, and slice views on its organs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import slicer

from DCASegmentationLib.figures.planes import SCREEN_AXES, Plane

# Slice views of Slicer's standard layouts, by their orientation.
_STANDARD_VIEWS = {"axial": ("Red", "Axial"), "sagittal": ("Yellow", "Sagittal"), "coronal": ("Green", "Coronal")}
# Letter and color on the bar of each standard view, as Slicer's layouts give them. A scene that is written without
# Slicer has to say them: opened there, its view nodes replace those that Slicer has made.
_BARS = {
    "Red": ("R", (0.952941, 0.290196, 0.2)),
    "Yellow": ("Y", (0.929412, 0.835294, 0.298039)),
    "Green": ("G", (0.431373, 0.690196, 0.294118)),
}


def group_in_folder(name: str, nodes: Sequence[Any]) -> None:
    """Put the nodes into one folder of the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
    for node in nodes:
        # Inside Slicer a node has its item already; outside nothing creates one.
        if item := hierarchy.GetItemByDataNode(node):
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)


def arrange_views(ct_node: Any, planes: Mapping[str, Plane]) -> None:
    """Show the CT in the standard slice views, each on its plane."""
    for orientation, plane in planes.items():
        view, preset = _STANDARD_VIEWS[orientation]
        composite = view_node("vtkMRMLSliceCompositeNode", view)
        composite.SetBackgroundVolumeID(ct_node.GetID())
        slice_node = view_node("vtkMRMLSliceNode", view)
        slice_node.SetDefaultOrientation(preset)
        place_slice(slice_node, plane, slice_node.GetDimensions()[:2])


def place_slice(slice_node: Any, plane: Plane, pixels: Sequence[int]) -> None:
    """Set a vtkMRMLSliceNode to a plane, shown on ``pixels`` (columns, rows) with square pixels."""
    matrix = slice_node.GetSliceToRAS()
    for row in range(3):
        for column in range(3):
            matrix.SetElement(row, column, SCREEN_AXES[plane.orientation][row, column])
        matrix.SetElement(row, 3, plane.center[row])
    slice_node.UpdateMatrices()
    columns, rows = pixels
    mm_per_pixel = max(plane.width_mm / columns, plane.height_mm / rows)
    slice_node.SetFieldOfView(mm_per_pixel * columns, mm_per_pixel * rows, 1.0)


def view_node(class_name: str, view: str) -> Any:
    """The view node of the standard layout, made where no layout manager has done so."""
    node = slicer.mrmlScene.GetSingletonNode(view, class_name)
    if node is not None:
        return node
    node = slicer.mrmlScene.CreateNodeByClass(class_name)
    node.UnRegister(None)
    node.SetSingletonTag(view)
    node.SetLayoutName(view)
    node.SetName(view)
    if class_name == "vtkMRMLSliceNode":
        node.SetDimensions(512, 512, 1)
        label, color = _BARS.get(view, (view, node.GetLayoutColor()))
        node.SetLayoutLabel(label)
        node.SetLayoutColor(*color)
    return slicer.mrmlScene.AddNode(node)


def jump_to_segment(segmentation: Any, segment_id: str) -> None:
    """Center all slice views on a segment: on the middle of its largest part. Nothing happens for an empty one."""
    center = segmentation.GetSegmentCenterRAS(segment_id)
    if center is not None:
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
