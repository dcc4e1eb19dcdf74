"""Which part of a scan is computed: the body without the air around it, and the abdomen of a long scan.

Coarse on purpose: HU are averaged over blocks of some 8 mm, in which noise and the thin shells of a scanner table
vanish. What is left after taking off one block all around is body if there is enough of it: the trunk, and arms or legs
beside it. It is then grown by more than was taken off. Whatever is in doubt counts as body: a box too large costs time,
one too small would cut anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..organs import Vocabulary
from .sliding_window import Triple

_BLOCK_MM = 8.0
_BODY_HU = -300.0
# A piece smaller than both of these is none of the body.
_LEAST_ML = 30.0
_LEAST_SHARE = 0.01
_MARGIN_MM = 24.0
# What takes less of the volume off than this is not worth other windows.
_WHOLE = 0.95

Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Body:
    """Blocks that hold body: ``blocks`` (z, y, x), each of ``block`` voxels (z, y, x) of a volume of ``shape``."""

    blocks: NDArray[np.bool_]
    block: Triple
    shape: Triple

    def region(self, patch: Sequence[int]) -> Region:
        """The box around the body, no side smaller than that of ``patch`` or, where that is smaller, of the volume."""
        if not self.blocks.any():
            return whole_region(self.shape)
        sides = []
        for axis, (length, block, least) in enumerate(zip(self.shape, self.block, patch, strict=True)):
            held = np.flatnonzero(self.blocks.any(axis=tuple(other for other in range(3) if other != axis)))
            start, stop = int(held[0]) * block, min((int(held[-1]) + 1) * block, length)
            missing = max(min(least, length) - (stop - start), 0)
            start = min(max(start - missing // 2, 0), length - max(min(least, length), stop - start))
            sides.append(slice(start, max(stop, start + min(least, length))))
        z, y, x = sides
        size = np.prod([side.stop - side.start for side in sides]) / np.prod(self.shape)
        return whole_region(self.shape) if size > _WHOLE else (z, y, x)

    def touches(self, start: Sequence[int], patch: Sequence[int]) -> bool:
        """Whether the window of ``patch`` that begins at ``start`` (z, y, x) holds body."""
        part = tuple(
            slice(max(first, 0) // block, -(-(first + side) // block))
            for first, side, block in zip(start, patch, self.block, strict=True)
        )
        return bool(self.blocks[part].any())


def whole_region(shape: Sequence[int]) -> Region:
    """All of a volume of ``shape`` (z, y, x)."""
    depth, height, width = shape
    return slice(0, depth), slice(0, height), slice(0, width)


def find_body(hu: NDArray[np.float32], spacing: Sequence[float]) -> Body:
    """The body in ``hu`` (z, y, x), a CT on the model grid of ``spacing`` (x, y, z) in mm."""
    step = spacing[::-1]
    z, y, x = (max(round(_BLOCK_MM / side), 1) for side in step)
    block = (z, y, x)
    dense = _block_means(hu, block) > _BODY_HU
    block_ml = float(np.prod([side * each for side, each in zip(step, block, strict=True)])) / 1000
    core = sitk.BinaryErode(_image(_edges_repeated(dense)), [1, 1, 1], sitk.sitkBox, 0.0, 1.0, False)
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(core, True))[1:-1, 1:-1, 1:-1]
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = sizes >= max(min(_LEAST_ML / block_ml, _LEAST_SHARE * sizes.max()), 1)
    reach = [int(1 + np.ceil(_MARGIN_MM / (side * each))) for side, each in zip(step, block, strict=True)]
    grown = sitk.BinaryDilate(_image(kept[pieces]), reach[::-1], sitk.sitkBox)
    depth, height, width = hu.shape
    return Body(_rows_filled(sitk.GetArrayFromImage(grown) > 0), block, (depth, height, width))


def _block_means(hu: NDArray[np.float32], block: Triple) -> NDArray[np.float32]:
    means = hu
    for axis, side in enumerate(block):
        starts = np.arange(0, means.shape[axis], side)
        counts = np.diff([*starts, means.shape[axis]]).astype(np.float32)
        means = np.add.reduceat(means, starts, axis=axis, dtype=np.float32)
        means /= counts.reshape([-1 if other == axis else 1 for other in range(3)])
    return means


def _edges_repeated(dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With a rim, so that a body that the field of view cuts goes on beyond it."""
    return np.pad(dense, 1, mode="edge")


def _rows_filled(blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With what lies between the first and the last block of a row: lungs and bowel gas are body too."""
    left = np.maximum.accumulate(blocks, axis=2)
    right = np.maximum.accumulate(blocks[:, :, ::-1], axis=2)[:, :, ::-1]
    return left & right


def _image(blocks: NDArray[np.bool_]) -> sitk.Image:
    return sitk.GetImageFromArray(np.ascontiguousarray(blocks).astype(np.uint8))


MARGIN_MM = 60.0
"""What is added above and below: more than a coarse pass cuts off an organ's end, and the length of a gallbladder that
it may have missed."""

_MIN_SHARE_OF_ABDOMEN = 0.25
"""Of the smallest ordinary volume of an organ: what is smaller is taken for a mistake."""


def abdominal_planes(
    labels: sitk.Image, vocabulary: Vocabulary, grid: Grid, margin_mm: float = MARGIN_MM
) -> slice | None:
    """The planes of ``grid`` (along its last index axis, z) that hold the organs of ``labels``, an image of any grid,
    and ``margin_mm`` more on both sides; None where there is no organ of some size."""
    found = sitk.LabelShapeStatisticsImageFilter()
    found.SetComputePerimeter(False)
    found.Execute(labels)
    along = []
    for label in found.GetLabels():
        if found.GetPhysicalSize(label) < 1000 * _MIN_SHARE_OF_ABDOMEN * vocabulary.by_label[label].volume_ml[0]:
            continue
        first = np.array(found.GetBoundingBox(label)[:3])
        box = np.stack([first, first + found.GetBoundingBox(label)[3:] - 1])
        for sides in np.ndindex(2, 2, 2):
            corner = labels.TransformIndexToPhysicalPoint([int(box[side, axis]) for axis, side in enumerate(sides)])
            along.append(float((np.array(corner) - grid.origin) @ grid.axes[:, 2]))
    if not along:
        return None
    start = np.floor((min(along) - margin_mm) / grid.spacing[2])
    stop = np.ceil((max(along) + margin_mm) / grid.spacing[2]) + 1
    return slice(int(max(start, 0)), int(min(stop, grid.size[2])))


def at_least(planes: slice, depth: int, available: int) -> slice:
    """``planes`` with as many more on both sides as make up ``depth``, within the ``available`` ones."""
    missing = max(min(depth, available) - (planes.stop - planes.start), 0)
    start = max(min(planes.start - missing // 2, available - (planes.stop - planes.start) - missing), 0)
    return slice(start, min(start + (planes.stop - planes.start) + missing, available))
