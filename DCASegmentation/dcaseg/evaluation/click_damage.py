"""Damage to masks and CTs, so that a classifier of clicks sees more than a model's own errors.

A model's errors are mostly thin. Users also repair large ones: half of an organ that is missing, a piece that they have
erased, or a leak into a neighbor. And they load short CTs with thick slices, on which the model does worse.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..interaction.view import Mask, compute_signed_distance, smooth_image
from ..types import Box

_MARGIN_MM = 30.0
_ALIKE_HU = 40.0
_AIR_HU = -500.0
# Millimeters, or shares of the organ's voxels or extent.
_BALL_MM = (5.0, 22.0)
_SHIFT_MM = (1.5, 5.0)
_CUT = (0.15, 0.65)
_HALF_BLOCK = (0.15, 0.4)
_SLAB_MM = (50.0, 90.0)
_SLICE_MM = (4.0, 8.0)


def damage_mask(
    mask: Mask, hu: NDArray[np.generic], spacing: tuple[float, float, float], random: np.random.Generator
) -> Mask:
    """Return ``mask`` (z, y, x) with one large error, of a random kind.

    A side cut off, a block or a ball erased, a ball added, within voxels of the same HU or not, or a border that is
    shifted on one side or everywhere. ``hu`` (z, y, x); ``spacing`` is (x, y, z) in mm. The mask must not be empty.
    """
    box = _compute_padded_box(mask, spacing)
    own = mask[box]
    kinds: tuple[Callable[[], Mask], ...] = (
        lambda: own & ~_draw_half_space(own, spacing, random),
        lambda: own & ~_draw_block(own, random),
        lambda: own & ~_draw_ball(own, spacing, random),
        lambda: own | _add_leak(own, np.asarray(hu[box], np.float32), spacing, random),
        lambda: _shift_border(own, spacing, random),
    )
    changed = mask.copy()
    changed[box] = kinds[int(random.choice(len(kinds), p=(0.25, 0.2, 0.15, 0.25, 0.15)))]()
    return changed if changed.any() else mask


def _draw_half_space(mask: Mask, spacing: tuple[float, float, float], random: np.random.Generator) -> Mask:
    """Return the side (z, y, x) of a random plane that contains a random share of ``mask``."""
    normal = random.normal(size=3)
    if random.random() < 0.5:
        # Organs often end with a slice, or where a window of the model did.
        normal = np.eye(3)[random.integers(3)] * random.choice((-1.0, 1.0))
    steps = np.array(spacing[::-1]) * normal
    z, y, x = np.ogrid[tuple(slice(0, size) for size in mask.shape)]
    along = z * steps[0] + y * steps[1] + x * steps[2]
    return np.asarray(along < np.quantile(along[mask], random.uniform(*_CUT)))


def _draw_block(mask: Mask, random: np.random.Generator) -> Mask:
    where = np.argwhere(mask)
    center, extent = where[random.integers(len(where))], np.ptp(where, axis=0) + 1
    half = np.maximum(random.uniform(*_HALF_BLOCK, size=3) * extent, 1.0)
    block = np.zeros(mask.shape, bool)
    low, high = np.maximum(np.rint(center - half), 0).astype(int), np.rint(center + half).astype(int) + 1
    block[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return block


def _draw_ball(region: Mask, spacing: tuple[float, float, float], random: np.random.Generator) -> Mask:
    """Return a ball (z, y, x) around a random voxel of ``region``."""
    where = np.argwhere(region)
    center = where[random.integers(len(where))]
    z, y, x = np.ogrid[tuple(slice(0, size) for size in region.shape)]
    square = sum(((axis - at) * step) ** 2 for axis, at, step in zip((z, y, x), center, reversed(spacing), strict=True))
    return np.asarray(square <= random.uniform(*_BALL_MM) ** 2)


def _add_leak(
    mask: Mask, hu: NDArray[np.float32], spacing: tuple[float, float, float], random: np.random.Generator
) -> Mask:
    """Return a ball (z, y, x) on the border of ``mask``, half of the time only its voxels with the HU of the mask."""
    border = mask & (compute_signed_distance(mask, spacing) > -1.5 * max(spacing))
    ball = _draw_ball(border, spacing, random)
    if random.random() < 0.5:
        return np.asarray(ball & (hu > _AIR_HU))
    return np.asarray(ball & (np.abs(smooth_image(hu, spacing, 2.0) - np.median(hu[mask])) < _ALIKE_HU))


def _shift_border(mask: Mask, spacing: tuple[float, float, float], random: np.random.Generator) -> Mask:
    """Return ``mask`` (z, y, x) with its border shifted outward or inward, half of the time on one side only."""
    shift = random.uniform(*_SHIFT_MM) * random.choice((-1.0, 1.0))
    moved = compute_signed_distance(mask, spacing) < shift
    return moved if random.random() < 0.5 else np.where(_draw_half_space(mask, spacing, random), moved, mask)


def _compute_padded_box(mask: Mask, spacing: tuple[float, float, float]) -> Box:
    sides = []
    for axis, step in enumerate(reversed(spacing)):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(_MARGIN_MM / step))
        sides.append(slice(max(0, int(hits[0]) - margin), int(hits[-1]) + margin + 1))
    return sides[0], sides[1], sides[2]


def make_thick_slab(ct: sitk.Image, labels: sitk.Image, random: np.random.Generator) -> tuple[sitk.Image, sitk.Image]:
    """Return a short piece of ``ct`` and its ``labels`` with thick slices, at a random height where organs are.

    Each slice averages the HU of the slices that it covers; its labels are those in its middle.
    """
    grid = Grid.from_image(ct)
    hu, truth = sitk.GetArrayViewFromImage(ct), sitk.GetArrayViewFromImage(labels)
    step = grid.spacing[2]
    height, thickness = random.uniform(*_SLAB_MM), max(random.uniform(*_SLICE_MM), step)
    # Vessels alone run far beyond the abdomen, so slices with more organs are more likely.
    organs = np.array([len(np.unique(each)) - 1 for each in truth], float) ** 2
    middle = int(random.choice(len(organs), p=organs / organs.sum())) if organs.any() else len(organs) // 2
    first = float(np.clip(middle - 0.5 * height / step, 0, max(len(hu) - height / step, 0)))
    count = max(int(min(height, (len(hu) - first) * step) // thickness), 1)
    starts = first + np.arange(count) * thickness / step
    slices = np.arange(len(hu))
    # How much of each old slice (columns) lies in each new one (rows).
    share = np.clip(
        np.minimum(starts[:, None] + thickness / step, slices + 1) - np.maximum(starts[:, None], slices), 0.0, 1.0
    )
    mixed = np.tensordot(share / share.sum(axis=1, keepdims=True), hu.astype(np.float64), 1)
    centers = starts + 0.5 * thickness / step - 0.5
    nearest = np.clip(np.rint(centers).astype(int), 0, len(hu) - 1)
    x, y, z = (np.array(grid.origin) + grid.axes[:, 2] * centers[0] * step).tolist()
    thick = Grid(
        (grid.size[0], grid.size[1], count), (grid.spacing[0], grid.spacing[1], thickness), (x, y, z), grid.direction
    )
    return thick.make_image(np.rint(mixed).astype(np.int16)), thick.make_image(truth[nearest])
