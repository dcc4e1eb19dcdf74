"""One place in the views: outlined, and in the middle of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from DCASegmentationLib.review_file import Place
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.place_voxels import PlaceVoxels, voxels_of
from DCASegmentationLib.scene.volumes import index_to_ras

_TAG = "DCASegmentation.place"
# None of the organs' colors, and seen on gray, red and blue alike.
COLOR = (1.0, 1.0, 0.0)
_THICKNESS = 2


def outline(nodes: CaseNodes, place: Place) -> Any | None:
    """Outline a place in slice and 3D views; the outline of another one goes. None where its voxels were deleted.

    The vtkMRMLModelNode for it is no part of the user's data: it is not listed, and not saved with the scene. It is no
    segmentation: Slicer looks every segmentation up in the subject hierarchy, where hidden ones are not.
    """
    voxels = voxels_of(nodes, place.rank)
    if voxels is None:
        hide_outline()
        return None
    node = _node() or _new_node()
    _display_of(node)
    before = node.StartModify()
    node.SetName(f"{place.rank}: {place.name}")
    node.SetAndObservePolyData(_surface(voxels))
    node.SetAndObserveTransformNodeID(voxels.volume.GetTransformNodeID())
    _display_of(node).SetVisibility(True)
    node.EndModify(before)
    return node


def hide_outline() -> None:
    """Outline nothing."""
    node = _node()
    if node is not None and node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetVisibility(False)


def outlined() -> Any | None:
    """The node of the outline that is shown; None where there is none."""
    node = _node()
    is_shown = node is not None and node.GetDisplayNode() is not None and node.GetDisplayNode().GetVisibility()
    return node if is_shown else None


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


def _surface(voxels: PlaceVoxels) -> Any:
    """The surface around the voxels of a place, in the space of its volume."""
    # With a rim of zeros the surface is closed where the place ends at its box.
    mask = np.pad(voxels.mask.astype(np.uint8), 1)
    image = vtk.vtkImageData()
    image.SetDimensions(mask.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(mask.ravel(), deep=True))
    contour = vtk.vtkDiscreteFlyingEdges3D()
    contour.SetInputData(image)
    contour.SetValue(0, 1)
    to_ras = index_to_ras(voxels.volume)
    first = to_ras.MultiplyPoint([*(part.start - 1 for part in reversed(voxels.box)), 1.0])
    for row in range(3):
        to_ras.SetElement(row, 3, first[row])
    transform = vtk.vtkTransform()
    transform.SetMatrix(to_ras)
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetTransform(transform)
    placed.SetInputConnection(contour.GetOutputPort())
    placed.Update()
    return placed.GetOutput()


def _node() -> Any | None:
    return slicer.mrmlScene.GetSingletonNode(_TAG, "vtkMRMLModelNode")


def _new_node() -> Any:
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLModelNode")
    node.UnRegister(None)
    node.SetSingletonTag(_TAG)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    return slicer.mrmlScene.AddNode(node)


def _display_of(node: Any) -> Any:
    """How the outline is shown; made anew after the scene was closed, which leaves the node alone."""
    if node.GetDisplayNode() is not None:
        return node.GetDisplayNode()
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetColor(COLOR)
    display.SetOpacity(0.5)
    display.SetVisibility2D(True)
    display.SetSliceIntersectionThickness(_THICKNESS)
    return display
