"""One finding in the scene: its voxels, and its outline in the views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from dcaseg.review.schema import Finding
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.segmentation import own_organs, segment_layers
from DCASegmentationLib.scene.surfaces import surfaces_aside
from DCASegmentationLib.scene.volumes import Box, index_to_ras

_KEEP = 255


@dataclass(frozen=True)
class PlaceVoxels:
    """``mask`` (z, y, x) within ``box`` of the array of ``volume``, the case's volume of places."""

    volume: Any
    box: Box
    mask: np.ndarray

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.mask))


def voxels_of(nodes: CaseNodes, rank: int) -> PlaceVoxels | None:
    """The voxels of the place with this rank; None where its volume was deleted or holds none."""
    if nodes.places is None or nodes.places.GetImageData() is None:
        return None
    mask = slicer.util.arrayFromVolume(nodes.places) == rank
    hits = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not hits[0].size:
        return None
    z, y, x = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    return PlaceVoxels(nodes.places, (z, y, x), mask[z, y, x])


def members(nodes: CaseNodes, place: PlaceVoxels) -> dict[str, np.ndarray]:
    """Which of the place's voxels (bool, one dimension) are in each segment of this program, by segment ID."""
    found = {segment_id: np.zeros(place.count, bool) for segment_id in own_organs(nodes.segmentation)}
    for layer in segment_layers(nodes.segmentation, place.volume):
        whole = np.zeros(place.volume.GetImageData().GetDimensions()[::-1], layer.labels.dtype)
        whole[layer.box] = layer.labels
        inside = whole[place.box][place.mask]
        for value, segment_id in layer.segments.items():
            if segment_id in found:
                found[segment_id] = inside == value
    return found


def set_members(nodes: CaseNodes, place: PlaceVoxels, wanted: Mapping[str, np.ndarray]) -> set[str]:
    """Put the place's voxels into these segments (by ID, as :func:`members` gives them) and out of them, as wanted.

    All other voxels and segments stay as they are, and so do surfaces. Returns the IDs of the segments that changed,
    whose surfaces are to be made anew (see ``surfaces.renewing_surfaces``).
    """
    now = members(nodes, place)
    modification = nodes.segmentation.StartModify()
    try:
        with surfaces_aside(nodes.segmentation):
            _move(nodes, place, now, wanted)
    finally:
        nodes.segmentation.EndModify(modification)
    return {segment_id for segment_id, inside in wanted.items() if not np.array_equal(inside, now[segment_id])}


def _move(
    nodes: CaseNodes, place: PlaceVoxels, now: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> None:
    # First out, then in: segments that never overlap stay in one label map.
    for segment_id, inside in wanted.items():
        leaving = now[segment_id] & ~inside
        if leaving.any():
            _write(nodes, place, segment_id, np.where(leaving, 0, _KEEP), _KEEP, "MODE_MERGE_MIN")
    for segment_id, inside in wanted.items():
        coming = inside & ~now[segment_id]
        if coming.any():
            _write(nodes, place, segment_id, coming, 0, "MODE_MERGE_MASK")


def image_of_place(place: PlaceVoxels, values: np.ndarray, around: int = 0) -> Any:
    """The place's box as a vtkOrientedImageData (8 bit) in the place's space, with ``values`` in its voxels and
    ``around`` in the others."""
    voxels = np.full(place.mask.shape, around, np.uint8)
    voxels[place.mask] = values
    image = slicer.vtkOrientedImageData()
    image.SetExtent([bound for part in reversed(place.box) for bound in (part.start, part.stop - 1)])
    scalars = numpy_to_vtk(voxels.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetGeometryFromImageToWorldMatrix(index_to_ras(place.volume))
    return image


def _write(nodes: CaseNodes, place: PlaceVoxels, segment_id: str, values: np.ndarray, around: int, mode: str) -> None:
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetBinaryLabelmapToSegment(
        image_of_place(place, values, around), nodes.segmentation, segment_id, getattr(logic, mode)
    )


_TAG = "DCASegmentation.place"
# None of the organs' colors, and seen on gray, red and blue alike.
COLOR = (1.0, 1.0, 0.0)
_THICKNESS = 2


def outline(nodes: CaseNodes, place: Finding) -> Any | None:
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


def jump_to(nodes: CaseNodes, place: Finding) -> None:
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


def position_of(nodes: CaseNodes, place: Finding) -> tuple[float, float, float]:
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
