"""The block around a stroke as an engine sees it, and the way back onto the CT's voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid

Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class SeenStroke:
    """A stroke as a view shows it: ``voxels`` (n, 3), whether they belong to the organ, and ``radius_mm``, how far it
    lay from the border of the mask when it was drawn, None where there was no mask."""

    voxels: NDArray[np.int64]
    adds: bool
    radius_mm: float | None


@dataclass(frozen=True)
class View:
    """A block of a CT, all arrays (z, y, x) on ``grid``.

    ``hu``: float32. ``mask``: the organ's present mask; ``first_mask``: that before any stroke. ``others``: voxels of
    other segments. ``strokes``: all that lie in the block, the latest last. ``probability``: of the organ by the
    network, 0 to 1, where it is at hand.
    """

    grid: Grid
    hu: FloatArray
    mask: Mask
    first_mask: Mask
    others: Mask
    strokes: tuple[SeenStroke, ...]
    probability: FloatArray | None = None

    def seeds(self, adds: bool) -> Mask:
        """The voxels of all strokes of one kind; where strokes contradict on one voxel, the later one counts."""
        marks = np.zeros(self.mask.shape, np.int8)
        for stroke in self.strokes:
            marks[tuple(stroke.voxels.T)] = 1 if stroke.adds else -1
        return marks == (1 if adds else -1)


class Engine(Protocol):
    """Something that corrects a mask."""

    @property
    def name(self) -> str:
        """What the provenance calls it."""

    def foreground(self, view: View) -> FloatArray:
        """The organ's probability (z, y, x), 0 to 1, after the strokes of ``view``; above 0.5 is the organ."""


FINEST_MM = 1.5
"""Engines work on voxels about so large where the CT's are finer: a block of 96 mm then has 64 voxels a side."""

_MOST_VOXELS = 66


def strides_of(grid: Grid) -> tuple[int, int, int]:
    """How many voxels (z, y, x) of a block of the CT make one of its view: longer blocks get coarser views."""
    longest = max(size * step for size, step in zip(grid.size, grid.spacing, strict=True))
    target = max(FINEST_MM, longest / _MOST_VOXELS)
    z, y, x = (max(1, round(target / step)) for step in reversed(grid.spacing))
    return z, y, x


def reduced_grid(grid: Grid, strides: tuple[int, int, int]) -> Grid:
    """``grid`` with blocks of ``strides`` (z, y, x) voxels as voxels; what is left over at the far sides is cut off."""
    steps = np.array(strides[::-1])
    size = np.array(grid.size) // steps
    spacing = np.array(grid.spacing) * steps
    x, y, z = (np.array(grid.origin) + grid.axes @ ((steps - 1) / 2 * np.array(grid.spacing))).tolist()
    return Grid(
        (int(size[0]), int(size[1]), int(size[2])),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (x, y, z),
        grid.direction,
    )


def reduced(array: np.ndarray, strides: tuple[int, int, int]) -> FloatArray:
    """Means (float32) of blocks of ``strides`` voxels of ``array`` (z, y, x)."""
    if strides == (1, 1, 1):
        return array.astype(np.float32)
    counts = [size // step for size, step in zip(array.shape, strides, strict=True)]
    cut = array[tuple(slice(0, count * step) for count, step in zip(counts, strides, strict=True))]
    blocks = cut.reshape(counts[0], strides[0], counts[1], strides[1], counts[2], strides[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def sub_grid(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    """The grid of the block ``box`` (z, y, x) of ``grid``."""
    first = np.array([box[2].start, box[1].start, box[0].start], float)
    x, y, z = (np.array(grid.origin) + grid.axes @ (first * np.array(grid.spacing))).tolist()
    size = tuple(s.stop - s.start for s in reversed(box))
    return Grid((size[0], size[1], size[2]), grid.spacing, (x, y, z), grid.direction)


def decided(foreground: FloatArray, view: View, mask: Mask, grid: Grid, strides: tuple[int, int, int]) -> Mask:
    """The organ's mask on the CT's voxels (``grid``, of the shape of ``mask``), from an engine's answer on the view's.

    Only where the answer differs from the view's mask, or beside it, does a voxel change: what was fine stays fine.
    """
    answer = foreground > 0.5
    if strides == (1, 1, 1):
        return answer
    changed = answer != view.mask
    if not changed.any():
        return mask.copy()
    near = sitk.BinaryDilate(view.grid.image_of(changed.astype(np.uint8)), [1, 1, 1], sitk.sitkBall)
    fine = sitk.ResampleImageFilter()
    fine.SetSize(grid.size)
    fine.SetOutputSpacing(grid.spacing)
    fine.SetOutputOrigin(grid.origin)
    fine.SetOutputDirection(grid.direction)
    fine.UseNearestNeighborExtrapolatorOn()
    fine.SetInterpolator(sitk.sitkNearestNeighbor)
    allowed = sitk.GetArrayFromImage(fine.Execute(near)) > 0
    fine.SetInterpolator(sitk.sitkLinear)
    soft = sitk.GetArrayFromImage(fine.Execute(view.grid.image_of(foreground)))
    return np.where(allowed, soft > 0.5, mask)


def distance_to(seeds: Mask, spacing: tuple[float, float, float]) -> FloatArray:
    """Distance (mm) to the border of ``seeds`` (z, y, x), negative inside; 60 where there are none.

    ``spacing`` is (x, y, z).
    """
    if not seeds.any():
        return np.full(seeds.shape, 60.0, np.float32)
    image = sitk.GetImageFromArray(seeds.astype(np.uint8))
    image.SetSpacing(spacing)
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))
