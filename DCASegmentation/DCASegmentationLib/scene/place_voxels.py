"""The voxels of one place: which segments hold them, and writing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import slicer.util
from vtk.util.numpy_support import numpy_to_vtk

from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.label_volumes import Box
from DCASegmentationLib.scene.segment_voxels import segment_layers
from DCASegmentationLib.scene.surfaces import surfaces_aside
from DCASegmentationLib.scene.target import own_organs
from DCASegmentationLib.scene.volumes import index_to_ras

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
