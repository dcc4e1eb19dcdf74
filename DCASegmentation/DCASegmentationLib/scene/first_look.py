"""What a user sees first of a new result: its organs, in a window that shows them, and no older result over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk

from DCASegmentationLib.scene.case_record import CaseNodes, cases_of
from DCASegmentationLib.scene.volumes import ABDOMEN_LEVEL, ABDOMEN_WINDOW, index_to_ras


def use_abdominal_window(ct: Any) -> None:
    """Show a CT (vtkMRMLScalarVolumeNode) in the soft-tissue window of the abdomen, where the user has set none."""
    display = ct.GetDisplayNode()
    if display is not None and display.GetAutoWindowLevel():
        before = display.StartModify()
        display.AutoWindowLevelOff()
        display.SetWindowLevel(ABDOMEN_WINDOW, ABDOMEN_LEVEL)
        display.EndModify(before)


def hide_earlier(nodes: CaseNodes) -> list[Any]:
    """Hide the earlier results of the same CT; returns the segmentations that were visible."""
    hidden = []
    for case in cases_of(nodes.ct):
        display = case.segmentation.GetDisplayNode()
        if case.segmentation is not nodes.segmentation and display is not None and display.GetVisibility():
            display.SetVisibility(False)
            hidden.append(case.segmentation)
    return hidden


def go_to_organs(nodes: CaseNodes) -> bool:
    """Bring the slice that crosses most organs into each slice view; False where there is no organ to go to."""
    place = organ_position(nodes)
    if place is None:
        return False
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
    return True


def organ_position(nodes: CaseNodes) -> tuple[float, float, float] | None:
    """Where along each axis of the CT most organs are crossed, as a point in the world (RAS, mm)."""
    if nodes.automatic is None or nodes.automatic.GetImageData() is None:
        return None
    labels = slicer.util.arrayFromVolume(nodes.automatic)
    # Every second voxel: it is a question of centimeters.
    labels = labels[::2, ::2, ::2]
    present = [label for label in np.unique(labels).tolist() if label]
    if not present:
        return None
    votes = [np.zeros(length) for length in labels.shape]
    for label in present:
        mask = labels == label
        for axis in range(3):
            area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
            # As large a share for a small organ as for the liver.
            votes[axis] += area / area.max()
    z, y, x = (2 * int(vote.argmax()) for vote in votes)
    right, anterior, superior, _ = index_to_ras(nodes.automatic).MultiplyPoint((x, y, z, 1.0))
    return _in_world(nodes.automatic, (right, anterior, superior))


def _in_world(node: Any, point: tuple[float, float, float]) -> tuple[float, float, float]:
    parent = node.GetParentTransformNode()
    if parent is None:
        return point
    to_world = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(parent, None, to_world)
    right, anterior, superior = to_world.TransformPoint(*point)
    return right, anterior, superior
