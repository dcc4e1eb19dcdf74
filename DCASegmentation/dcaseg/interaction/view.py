"""The view of an engine: a block of the CT around a stroke, and the way from its answer back to the CT's voxels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..types import Box

Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ViewStroke:
    """A stroke in a view.

    ``voxels`` (n, 3) in the order (z, y, x); ``adds`` says whether they belong to the organ. ``radius_mm`` is the
    distance to the border of the mask when the stroke was drawn, None if there was no mask.
    """

    voxels: NDArray[np.int64]
    adds: bool
    radius_mm: float | None


@dataclass(frozen=True)
class View:
    """A block of a CT, all arrays (z, y, x) on ``grid``.

    ``hu``: float32. ``mask``: the organ's current mask; ``first_mask``: its mask before all strokes. ``others``: voxels
    of other segments. ``strokes``: the strokes in the block, the latest last. ``expected_ml``: the organ's usual
    volume, None if unknown.
    """

    grid: Grid
    hu: FloatArray
    mask: Mask
    first_mask: Mask
    others: Mask
    strokes: tuple[ViewStroke, ...]
    expected_ml: float | None = None

    def compute_distance(self, stroke: ViewStroke) -> FloatArray:
        """Return the distance (mm) of each voxel (z, y, x) to the nearest voxel of ``stroke``."""
        if len(stroke.voxels) <= _FEW_VOXELS:
            # Faster than a distance map.
            z, y, x = (
                ((np.arange(size)[:, None] - at) * step).astype(np.float32) ** 2
                for size, at, step in zip(self.mask.shape, stroke.voxels.T, reversed(self.grid.spacing), strict=True)
            )
            squares = (z[:, None, None, each] + y[:, None, each] + x[:, each] for each in range(len(stroke.voxels)))
            return np.sqrt(reduce(np.minimum, squares))
        marks = np.zeros(self.mask.shape, bool)
        marks[tuple(stroke.voxels.T)] = True
        return np.maximum(compute_signed_distance(marks, self.grid.spacing), 0.0)

    def make_seed_mask(self, adds: bool) -> Mask:
        """Return the mask of the strokes that add (or remove). In a voxel of several strokes, the latest one counts."""
        marks = np.zeros(self.mask.shape, np.int8)
        for stroke in self.strokes:
            marks[tuple(stroke.voxels.T)] = 1 if stroke.adds else -1
        return marks == (1 if adds else -1)


class Engine(Protocol):
    """Corrects a mask."""

    @property
    def name(self) -> str:
        """The name of the engine in ``request.json`` and other records."""

    def predict_foreground(self, view: View) -> FloatArray:
        """Return the organ's probability (z, y, x), 0 to 1, after the strokes of ``view``; the organ is above 0.5."""


FINEST_MM = 1.5
"""The finest voxels of a view, in mm: a block of 96 mm then has 64 voxels along each side."""

_MAX_SIDE = 66
_FEW_VOXELS = 8


def compute_view_strides(grid: Grid, finest_mm: float = FINEST_MM) -> tuple[int, int, int]:
    """Return how many voxels (z, y, x) of a block of the CT make one voxel of its view.

    Voxels smaller than ``finest_mm`` are joined. Longer blocks are coarser.
    """
    longest = max(size * step for size, step in zip(grid.size, grid.spacing, strict=True))
    return compute_strides(grid, max(finest_mm, longest / _MAX_SIDE))


def compute_strides(grid: Grid, target_mm: float) -> tuple[int, int, int]:
    """Return how many voxels (z, y, x) of ``grid`` make one voxel of about ``target_mm``."""
    steps = zip(reversed(grid.spacing), grid.shape, strict=True)
    z, y, x = (min(max(1, round(target_mm / step)), size) for step, size in steps)
    return z, y, x


def downsample_grid(grid: Grid, strides: tuple[int, int, int]) -> Grid:
    """Return ``grid`` with blocks of ``strides`` (z, y, x) voxels as voxels, without incomplete blocks at the end."""
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


def downsample(array: np.ndarray, strides: tuple[int, int, int]) -> FloatArray:
    """Return the means (float32) of blocks of ``strides`` (z, y, x) voxels of ``array`` (z, y, x)."""
    if strides == (1, 1, 1):
        return array.astype(np.float32)
    counts = [size // step for size, step in zip(array.shape, strides, strict=True)]
    cut = array[tuple(slice(0, count * step) for count, step in zip(counts, strides, strict=True))]
    blocks = cut.reshape(counts[0], strides[0], counts[1], strides[1], counts[2], strides[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def crop_grid(grid: Grid, box: Box) -> Grid:
    """Return the grid of the block ``box`` (z, y, x) of ``grid``."""
    first = np.array([box[2].start, box[1].start, box[0].start], float)
    x, y, z = (np.array(grid.origin) + grid.axes @ (first * np.array(grid.spacing))).tolist()
    size = tuple(s.stop - s.start for s in reversed(box))
    return Grid((size[0], size[1], size[2]), grid.spacing, (x, y, z), grid.direction)


def resample_mask_to_ct(
    foreground: FloatArray, seen: Mask, seen_grid: Grid, mask: Mask, grid: Grid, strides: tuple[int, int, int]
) -> Mask:
    """Return the organ's mask on the CT's voxels from an engine's answer ``foreground`` (z, y, x) on coarser ones.

    ``seen`` (z, y, x) is the organ's mask before, on the coarser voxels, which are those of ``seen_grid``. ``grid`` is
    that of the block of the CT, ``mask`` (z, y, x) the organ's mask on it. Voxels are added only where ``seen`` has
    grown or next to it, and removed only where it has shrunk or next to it, so the rest keeps its detail. Thin parts
    of the mask, which ``seen`` may lack, are not lost where the organ grows.
    """
    answer = foreground > 0.5
    if strides == (1, 1, 1):
        return answer
    if (answer == seen).all():
        return mask.copy()
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputDirection(grid.direction)
    resampler.UseNearestNeighborExtrapolatorOn()
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)

    def near(changed: Mask) -> Mask:
        widened = sitk.BinaryDilate(seen_grid.make_image(changed.astype(np.uint8)), [1, 1, 1], sitk.sitkBall)
        return sitk.GetArrayFromImage(resampler.Execute(widened)) > 0

    may_grow, may_shrink = near(answer & ~seen), near(seen & ~answer)
    resampler.SetInterpolator(sitk.sitkLinear)
    found = sitk.GetArrayFromImage(resampler.Execute(seen_grid.make_image(foreground))) > 0.5
    return (mask | (may_grow & found)) & ~(may_shrink & ~found)


def compute_signed_distance(seeds: Mask, spacing: tuple[float, float, float]) -> FloatArray:
    """Return the distance (mm) of each voxel to the border of ``seeds`` (z, y, x), negative inside.

    The distance is 60 everywhere if ``seeds`` is empty. ``spacing`` is (x, y, z) in mm.
    """
    if not seeds.any():
        return np.full(seeds.shape, 60.0, np.float32)
    image = sitk.GetImageFromArray(seeds.astype(np.uint8))
    image.SetSpacing(spacing)
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))


def smooth_image(hu: FloatArray, spacing: tuple[float, float, float], sigma_mm: float) -> FloatArray:
    """Return ``hu`` (z, y, x) smoothed with a Gaussian of ``sigma_mm``; ``spacing`` is (x, y, z) in mm."""
    if sigma_mm <= 0 or min(hu.shape) < 4:
        return hu.astype(np.float32)
    image = sitk.GetImageFromArray(hu.astype(np.float32))
    image.SetSpacing(spacing)
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigma_mm))
