"""One place in the views: outlined, and in the middle of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk

from DCASegmentationLib.review_file import Place
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.place_voxels import image_of_place, voxels_of

_TAG = "DCASegmentation.place"
_SEGMENT = "place"
# None of the organs' colors, and seen on gray, red and blue alike.
COLOR = (1.0, 1.0, 0.0)
_THICKNESS = 2


def outline(nodes: CaseNodes, place: Place) -> Any | None:
    """Outline a place in slice and 3D views; the outline of another one goes. None where its voxels were deleted.

    The vtkMRMLSegmentationNode for it is no part of the user's data: it is not listed, and not saved with the scene.
    """
    voxels = voxels_of(nodes, place.rank)
    if voxels is None:
        hide_outline()
        return None
    node = _node() or _new_node()
    before = node.StartModify()
    content = node.GetSegmentation()
    content.RemoveAllSegments()
    segment = slicer.vtkSegment()
    segment.SetName(f"{place.rank}: {place.name}")
    segment.SetColor(COLOR)
    segment.AddRepresentation("Binary labelmap", image_of_place(voxels, np.ones(voxels.count, np.uint8)))
    content.AddSegment(segment, _SEGMENT)
    node.SetAndObserveTransformNodeID(voxels.volume.GetTransformNodeID())
    node.CreateClosedSurfaceRepresentation()
    node.EndModify(before)
    return node


def hide_outline() -> None:
    """Outline nothing."""
    node = _node()
    if node is not None:
        display = node.GetDisplayNode()
        slicer.mrmlScene.RemoveNode(node)
        if display is not None:
            slicer.mrmlScene.RemoveNode(display)


def jump_to(nodes: CaseNodes, place: Place) -> None:
    """Bring a place into the middle of all slice views, and turn all 3D views around it."""
    position = position_of(nodes, place)
    scene = slicer.mrmlScene
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *position, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLCameraNode")):
        camera = scene.GetNthNodeByClass(index, "vtkMRMLCameraNode")
        # From the same side and distance as before.
        moved = np.array(position) - camera.GetFocalPoint()
        camera.SetPosition((np.array(camera.GetPosition()) + moved).tolist())
        camera.SetFocalPoint(list(position))
        camera.ResetClippingRange()


def position_of(nodes: CaseNodes, place: Place) -> tuple[float, float, float]:
    """Where to look, in the world (RAS, mm), wherever the case has been moved to."""
    x, y, z = place.position_mm
    parent = nodes.segmentation.GetParentTransformNode()
    if parent is None:
        return -x, -y, z
    to_world = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(parent, None, to_world)
    right, anterior, superior = to_world.TransformPoint(-x, -y, z)
    return right, anterior, superior


def _node() -> Any | None:
    return slicer.mrmlScene.GetSingletonNode(_TAG, "vtkMRMLSegmentationNode")


def _new_node() -> Any:
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    node.SetSingletonTag(_TAG)
    node.SetName("Place to check")
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node = slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetOpacity2DOutline(1.0)
    display.SetSliceIntersectionThickness(_THICKNESS)
    display.SetOpacity3D(0.5)
    return node
