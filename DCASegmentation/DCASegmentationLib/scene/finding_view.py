"""One finding in the scene: its voxels, its outline in the views, and moving the views to it."""

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
from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.nodes import add_singleton_node, get_singleton_node, to_world
from DCASegmentationLib.scene.segmentation import get_layers, list_organ_segments
from DCASegmentationLib.scene.surfaces import without_surfaces
from DCASegmentationLib.scene.volumes import get_ijk_to_ras

_KEEP = 255


@dataclass(frozen=True)
class FindingVoxels:
    """The voxels of a finding: ``mask`` (bool, z, y, x) within ``box`` of the array of ``volume``.

    ``volume`` is the case's volume of finding ranks (``CaseNodes.finding_ranks``).
    """

    volume: Any
    box: Box
    mask: np.ndarray

    @property
    def count(self) -> int:
        """The number of voxels."""
        return int(np.count_nonzero(self.mask))


def get_finding_voxels(nodes: CaseNodes, rank: int) -> FindingVoxels | None:
    """The voxels of the finding with this rank; None if the volume was deleted or contains none."""
    if nodes.finding_ranks is None or nodes.finding_ranks.GetImageData() is None:
        return None
    mask = slicer.util.arrayFromVolume(nodes.finding_ranks) == rank
    hits = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not hits[0].size:
        return None
    z, y, x = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    return FindingVoxels(nodes.finding_ranks, (z, y, x), mask[z, y, x])


def compute_segment_masks(nodes: CaseNodes, finding: FindingVoxels) -> dict[str, np.ndarray]:
    """For each segment of this module, by segment ID: which of the finding's voxels (bool, one dimension) are in it."""
    found = {segment_id: np.zeros(finding.count, bool) for segment_id in list_organ_segments(nodes.segmentation)}
    for layer in get_layers(nodes.segmentation, finding.volume):
        whole = np.zeros(finding.volume.GetImageData().GetDimensions()[::-1], layer.labels.dtype)
        whole[layer.box] = layer.labels
        inside = whole[finding.box][finding.mask]
        for value, segment_id in layer.segments.items():
            if segment_id in found:
                found[segment_id] = inside == value
    return found


def set_members(nodes: CaseNodes, finding: FindingVoxels, wanted: Mapping[str, np.ndarray]) -> set[str]:
    """Set which voxels of the finding belong to which segments; ``wanted`` is as from :func:`compute_segment_masks`.

    Other voxels and segments do not change, and surfaces are not updated. Returns the IDs of the segments that changed,
    whose surfaces must be computed again (see ``surfaces.update_surfaces_in_steps``).
    """
    now = compute_segment_masks(nodes, finding)
    modification = nodes.segmentation.StartModify()
    try:
        with without_surfaces(nodes.segmentation):
            move_members(nodes, finding, now, wanted)
    finally:
        nodes.segmentation.EndModify(modification)
    return {segment_id for segment_id, inside in wanted.items() if not np.array_equal(inside, now[segment_id])}


def move_members(
    nodes: CaseNodes, finding: FindingVoxels, now: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> None:
    """Change the members of segments from ``now`` to ``wanted``, both as :func:`compute_segment_masks` returns them.

    Call it within ``without_surfaces``.
    """
    # Remove voxels before adding them, so that the segments never overlap and stay in one label map.
    for segment_id, inside in wanted.items():
        leaving = now[segment_id] & ~inside
        if leaving.any():
            _write(nodes, finding, segment_id, np.where(leaving, 0, _KEEP), _KEEP, "MODE_MERGE_MIN")
    for segment_id, inside in wanted.items():
        coming = inside & ~now[segment_id]
        if coming.any():
            _write(nodes, finding, segment_id, coming, 0, "MODE_MERGE_MASK")


def create_finding_image(finding: FindingVoxels, values: np.ndarray, around: int = 0) -> Any:
    """The finding's box as a vtkOrientedImageData (8 bit): ``values`` in its voxels, ``around`` in all others."""
    voxels = np.full(finding.mask.shape, around, np.uint8)
    voxels[finding.mask] = values
    image = slicer.vtkOrientedImageData()
    image.SetExtent([bound for part in reversed(finding.box) for bound in (part.start, part.stop - 1)])
    scalars = numpy_to_vtk(voxels.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetGeometryFromImageToWorldMatrix(get_ijk_to_ras(finding.volume))
    return image


def _write(
    nodes: CaseNodes, finding: FindingVoxels, segment_id: str, values: np.ndarray, around: int, mode: str
) -> None:
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetBinaryLabelmapToSegment(
        create_finding_image(finding, values, around), nodes.segmentation, segment_id, getattr(logic, mode)
    )


_MODEL, _TAG = "vtkMRMLModelNode", "DCASegmentation.place"
# Not the color of any organ, and visible on gray, red, and blue.
COLOR = (1.0, 1.0, 0.0)
_THICKNESS = 2


def show_outline(nodes: CaseNodes, finding: Finding) -> Any | None:
    """Outline a finding in slice and 3D views, instead of any other; returns None if its voxels were deleted.

    The outline is a vtkMRMLModelNode that is not part of the user's data: it is hidden and not saved with the scene. It
    is not a segmentation, because Slicer looks up every segmentation in the subject hierarchy, which lacks hidden ones.
    """
    voxels = get_finding_voxels(nodes, finding.rank)
    if voxels is None:
        hide_outline()
        return None
    node = get_singleton_node(_MODEL, _TAG) or add_singleton_node(_MODEL, _TAG, hidden=True)
    _get_display_node(node)
    before = node.StartModify()
    node.SetName(f"{finding.rank}: {finding.name}")
    node.SetAndObservePolyData(extract_surface(voxels))
    node.SetAndObserveTransformNodeID(voxels.volume.GetTransformNodeID())
    _get_display_node(node).SetVisibility(True)
    node.EndModify(before)
    return node


def is_outlined() -> bool:
    """Whether a finding is outlined in the views."""
    node = get_singleton_node(_MODEL, _TAG)
    return node is not None and bool(node.GetDisplayVisibility())


def hide_outline() -> None:
    """Hide the outline."""
    node = get_singleton_node(_MODEL, _TAG)
    if node is not None and node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetVisibility(False)


def jump_to(nodes: CaseNodes, finding: Finding) -> None:
    """Center all slice views on a finding, and let all 3D views rotate around it."""
    position = get_finding_position(nodes, finding)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    for camera in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
        # Keep the direction and the distance.
        moved = np.array(position) - camera.GetFocalPoint()
        camera.SetPosition((np.array(camera.GetPosition()) + moved).tolist())
        camera.SetFocalPoint(list(position))
        camera.ResetClippingRange()


def get_finding_position(nodes: CaseNodes, finding: Finding) -> tuple[float, float, float]:
    """The position of a finding in the world (RAS, mm), including the case's transform."""
    x, y, z = finding.position_mm
    return to_world(nodes.segmentation, (-x, -y, z))


def extract_surface(voxels: FindingVoxels) -> Any:
    """The surface around the voxels (vtkPolyData), in the space of its volume."""
    # A border of zeros closes the surface at the box.
    mask = np.pad(voxels.mask.astype(np.uint8), 1)
    image = vtk.vtkImageData()
    image.SetDimensions(mask.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(mask.ravel(), deep=True))
    contour = vtk.vtkDiscreteFlyingEdges3D()
    contour.SetInputData(image)
    contour.SetValue(0, 1)
    to_ras = get_ijk_to_ras(voxels.volume)
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


def _get_display_node(node: Any) -> Any:
    """The display node of the outline, created again if closing the scene has removed it."""
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
