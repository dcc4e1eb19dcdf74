"""Where an organ that was found with one click goes on beyond the block around the click.

A block holds no liver, and only a third of an aorta. The found piece then ends at the edge of the block although the
organ does not. The center of such an end, a little farther out, is where a user would click next.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from .evidence import FARTHEST_MM
from .random_walker import RandomWalkerOptions
from .strokes import box_around
from .view import FloatArray, Mask, smoothed, sub_grid

# The random walker reaches this far from a click, so the piece of an organ that goes on ends about here.
_EDGE_MM = RandomWalkerOptions().reach_mm
_THICKNESS_MM = 5.0
_SMALLEST_MM2 = 60.0
_OUTWARD_MM = 10.0
_AROUND_MM = 8.0
_ALIKE_HU = 30.0
_HU = (-200.0, 350.0)


def next_points(
    organ: Mask, hu: NDArray[np.integer], free: Mask, grid: Grid, click: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Return the voxels (3,), (z, y, x), just beyond the ends of ``organ`` at the edge of the block around ``click``.

    ``organ``, ``hu`` and ``free`` (z, y, x) are those of the whole CT, ``free`` where the organ may grow. ``click``
    (3,) is the voxel that the block was around. The largest end comes first.
    """
    box = box_around(click[None], grid, 2 * FARTHEST_MM)
    steps = np.array(grid.spacing[::-1])
    start = np.array([side.start for side in box])
    z, y, x = np.ogrid[tuple(slice(side.start, side.stop) for side in box)]
    distance = np.sqrt(sum(((axis - at) * step) ** 2 for axis, at, step in zip((z, y, x), click, steps, strict=True)))
    thickness = max(_THICKNESS_MM, 1.5 * max(grid.spacing))
    end = organ[box] & (distance > _EDGE_MM - thickness) & (distance <= FARTHEST_MM)
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(end.astype(np.uint8)), True))
    volumes = np.bincount(pieces.ravel())[1:] * grid.volume_ml_per_voxel * 1000
    middle = float(np.median(smoothed(np.clip(hu[box], *_HU).astype(np.float32), grid.spacing, 1.0)[organ[box]]))
    found = []
    for number in np.argsort(-volumes):
        if volumes[number] < _SMALLEST_MM2 * thickness:
            break
        center = np.argwhere(pieces == number + 1).mean(axis=0) + start
        outward = (center - click) * steps
        outward *= (float(np.linalg.norm(outward)) + _OUTWARD_MM) / max(float(np.linalg.norm(outward)), 1e-6)
        point = np.rint(click + outward / steps).astype(np.int64)
        if (point < 0).any() or (point >= grid.shape).any():
            continue
        deepest = _deepest(organ, hu, free, grid, point, middle)
        if deepest is not None:
            found.append(deepest)
    return found


def _deepest(
    organ: Mask, hu: NDArray[np.integer], free: Mask, grid: Grid, point: NDArray[np.int64], middle: float
) -> NDArray[np.int64] | None:
    """Return the voxel near ``point`` that is deepest in tissue of about ``middle`` HU, None if there is none."""
    box = box_around(point[None], grid, 4 * _AROUND_MM)
    alike = np.abs(smoothed(np.clip(hu[box], *_HU).astype(np.float32), grid.spacing, 1.0) - middle) < _ALIKE_HU
    alike &= free[box] & ~organ[box]
    if not alike.any():
        return None
    image = sub_grid(grid, box).image_of(alike.astype(np.uint8))
    depth: FloatArray = -sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))
    start = np.array([side.start for side in box])
    z, y, x = np.ogrid[tuple(slice(side.start, side.stop) for side in box)]
    steps = np.array(grid.spacing[::-1])
    square = sum(((axis - at) * step) ** 2 for axis, at, step in zip((z, y, x), point, steps, strict=True))
    depth = np.where(alike & (square <= _AROUND_MM**2), depth, -1.0)
    best = np.array(np.unravel_index(int(depth.argmax()), depth.shape))
    return best + start if depth.max() > 0 else None
