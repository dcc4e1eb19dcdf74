"""The region of a scan to segment: the body without the surrounding air, and the abdomen of a long scan.

The body is found on a coarse scale: HU are averaged over blocks of about 8 mm, in which noise and the thin shells of a
scanner table vanish. The mask of dense blocks is eroded by one block; the pieces that remain and are large enough are
body (the trunk, arms and legs). They are dilated by more than they were eroded. In doubt a block counts as body: too
large a region costs time, too small a region would cut off anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..organs import Vocabulary
from ..types import Box
from .sliding_window import Triple

_BLOCK_MM = 8.0
_BODY_HU = -300.0
# A piece smaller than both of these is not part of the body.
_MIN_ML = 30.0
_MIN_SHARE = 0.01
_BODY_MARGIN_MM = 24.0
# A region with more than this share of the volume is extended to the whole volume: cropping would save too little.
_WHOLE = 0.95


@dataclass(frozen=True)
class Body:
    """The blocks of a volume that contain body.

    ``blocks`` (z, y, x) says for each block whether it does; ``block`` is its size in voxels (z, y, x), ``shape`` that
    of the volume (depth, height, width).
    """

    blocks: NDArray[np.bool_]
    block: Triple
    shape: Triple

    def compute_bounding_box(self, patch: Sequence[int]) -> Box:
        """Return the box (z, y, x) around the body.

        No side is smaller than that of ``patch`` (depth, height, width), or that of the volume if it is smaller still.
        """
        if not self.blocks.any():
            return get_full_region(self.shape)
        sides = []
        for axis, (length, block, minimum) in enumerate(zip(self.shape, self.block, patch, strict=True)):
            occupied = np.flatnonzero(self.blocks.any(axis=tuple(other for other in range(3) if other != axis)))
            start, stop = int(occupied[0]) * block, min((int(occupied[-1]) + 1) * block, length)
            missing = max(min(minimum, length) - (stop - start), 0)
            start = min(max(start - missing // 2, 0), length - max(min(minimum, length), stop - start))
            sides.append(slice(start, max(stop, start + min(minimum, length))))
        z, y, x = sides
        size = np.prod([side.stop - side.start for side in sides]) / np.prod(self.shape)
        return get_full_region(self.shape) if size > _WHOLE else (z, y, x)

    def touches(self, start: Sequence[int], patch: Sequence[int]) -> bool:
        """Whether the window of size ``patch`` whose first voxel is ``start`` (z, y, x) contains body."""
        part = tuple(
            slice(max(first, 0) // block, -(-(first + side) // block))
            for first, side, block in zip(start, patch, self.block, strict=True)
        )
        return bool(self.blocks[part].any())


def get_full_region(shape: Sequence[int]) -> Box:
    """Return the box that covers a whole volume of ``shape`` (depth, height, width)."""
    depth, height, width = shape
    return slice(0, depth), slice(0, height), slice(0, width)


def find_body(hu: NDArray[np.float32], spacing: Sequence[float]) -> Body:
    """Find the body in ``hu`` (z, y, x), a CT on the model grid with ``spacing`` (x, y, z) in mm."""
    step = spacing[::-1]
    z, y, x = (max(round(_BLOCK_MM / side), 1) for side in step)
    block = (z, y, x)
    dense = _compute_block_means(hu, block) > _BODY_HU
    block_ml = float(np.prod([side * each for side, each in zip(step, block, strict=True)])) / 1000
    core = sitk.BinaryErode(_make_image(_pad_edges(dense)), [1, 1, 1], sitk.sitkBox, 0.0, 1.0, False)
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(core, True))[1:-1, 1:-1, 1:-1]
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = sizes >= max(min(_MIN_ML / block_ml, _MIN_SHARE * sizes.max()), 1)
    radius = [int(1 + np.ceil(_BODY_MARGIN_MM / (side * each))) for side, each in zip(step, block, strict=True)]
    grown = sitk.BinaryDilate(_make_image(kept[pieces]), radius[::-1], sitk.sitkBox)
    depth, height, width = hu.shape
    return Body(_fill_rows(sitk.GetArrayFromImage(grown) > 0), block, (depth, height, width))


def _compute_block_means(hu: NDArray[np.float32], block: Triple) -> NDArray[np.float32]:
    means = hu
    for axis, side in enumerate(block):
        starts = np.arange(0, means.shape[axis], side)
        counts = np.diff([*starts, means.shape[axis]]).astype(np.float32)
        means = np.add.reduceat(means, starts, axis=axis, dtype=np.float32)
        means /= counts.reshape([-1 if other == axis else 1 for other in range(3)])
    return means


def _pad_edges(dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add a border of one block, so that a body at the edge of the field of view extends beyond it."""
    return np.pad(dense, 1, mode="edge")


def _fill_rows(blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill each row between its first and last block: lungs and bowel gas are part of the body."""
    left = np.maximum.accumulate(blocks, axis=2)
    right = np.maximum.accumulate(blocks[:, :, ::-1], axis=2)[:, :, ::-1]
    return left & right


def _make_image(blocks: NDArray[np.bool_]) -> sitk.Image:
    return sitk.GetImageFromArray(np.ascontiguousarray(blocks).astype(np.uint8))


ABDOMEN_MARGIN_MM = 60.0
"""Margin above and below the organs: more than a coarse pass cuts off the end of an organ, and the length of a
gallbladder that it may have missed."""

_MIN_SHARE_OF_ORGAN = 0.25
"""Share of an organ's smallest usual volume; smaller pieces are taken for errors."""


def find_abdominal_planes(
    labels: sitk.Image, vocabulary: Vocabulary, grid: Grid, margin_mm: float = ABDOMEN_MARGIN_MM
) -> slice | None:
    """Return the planes (z) of ``grid`` that contain the organs of ``labels``, with ``margin_mm`` on both sides.

    ``labels`` may lie on any grid. None if no organ has a plausible size.
    """
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.SetComputePerimeter(False)
    shapes.Execute(labels)
    along = []
    for label in shapes.GetLabels():
        if shapes.GetPhysicalSize(label) < 1000 * _MIN_SHARE_OF_ORGAN * vocabulary.by_label[label].volume_ml[0]:
            continue
        first = np.array(shapes.GetBoundingBox(label)[:3])
        box = np.stack([first, first + shapes.GetBoundingBox(label)[3:] - 1])
        for sides in np.ndindex(2, 2, 2):
            corner = labels.TransformIndexToPhysicalPoint([int(box[side, axis]) for axis, side in enumerate(sides)])
            along.append(float((np.array(corner) - grid.origin) @ grid.axes[:, 2]))
    if not along:
        return None
    start = np.floor((min(along) - margin_mm) / grid.spacing[2])
    stop = np.ceil((max(along) + margin_mm) / grid.spacing[2]) + 1
    return slice(int(max(start, 0)), int(min(stop, grid.size[2])))


def extend_planes(planes: slice, depth: int, available: int) -> slice:
    """Extend ``planes`` on both sides to at least ``depth`` planes, within the ``available`` ones."""
    missing = max(min(depth, available) - (planes.stop - planes.start), 0)
    start = max(min(planes.start - missing // 2, available - (planes.stop - planes.start) - missing), 0)
    return slice(start, min(start + (planes.stop - planes.start) + missing, available))
