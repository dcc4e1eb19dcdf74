"""Where an organ that was found with one click goes on beyond the block around the click.

A block holds no liver, and only a third of an aorta. The found piece then ends at the edge of the block although the
organ does not. The center of such an end, a little farther out, is where a user would click next.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from .evidence import MAX_DISTANCE_MM
from .random_walker import RandomWalkerOptions
from .strokes import make_box_around
from .view import FloatArray, Mask, crop_grid, smooth_image

# The random walker reaches this far from a click, so the piece of an organ that goes on ends about here.
_EDGE_MM = RandomWalkerOptions().reach_mm
_MIN_MM = 12.0
_THICKNESS_MM = 5.0
_MIN_MM2 = 30.0
# How far beyond an end the next click is, the farthest first: where the tissue is this many times less deep, nearer.
_OUTWARD_MM = (28.0, 18.0, 10.0)
_DEEP = 0.45
_AROUND_MM = 8.0
# Depths are measured up to about this one.
_MAX_DEPTH_MM = 16.0
_ALIKE_HU = 30.0
_SMOOTHING_MM = 2.5
_HU = (-200.0, 350.0)


def find_next_points(
    organ: Mask, added: Mask, hu: NDArray[np.integer], free: Mask, grid: Grid, click: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Return the voxels (3,), (z, y, x), just beyond the ends of what a click has found of an organ.

    ``organ`` is its mask, ``added`` what ``click`` (3,) has found of it, ``free`` where it may grow, and ``hu`` the CT,
    all (z, y, x) and of the whole CT. If all of the organ was found by this click, an end is at the edge of the block,
    otherwise where the new piece is farthest from the click. The largest end comes first.
    """
    box = make_box_around(click[None], grid, 2 * MAX_DISTANCE_MM)
    steps = np.array(grid.spacing[::-1])
    start = np.array([side.start for side in box])
    z, y, x = np.ogrid[tuple(slice(side.start, side.stop) for side in box)]
    distance = np.sqrt(sum(((axis - at) * step) ** 2 for axis, at, step in zip((z, y, x), click, steps, strict=True)))
    thickness = max(_THICKNESS_MM, 1.5 * max(grid.spacing))
    where = np.argwhere(added[box] & (distance <= MAX_DISTANCE_MM))
    if not len(where):
        return []
    offsets = (where + start - click) * steps
    # A large piece goes on in many directions, which the main axis tells apart.
    axis = np.abs(offsets).argmax(axis=1)
    side = 2 * axis + (offsets[np.arange(len(offsets)), axis] > 0)
    far = distance[tuple(where.T)]
    edges = np.full(6, _EDGE_MM)
    if np.count_nonzero(added[box]) < np.count_nonzero(organ[box]):
        farthest = np.array([far[side == number].max(initial=0.0) for number in range(6)])
        edges = np.maximum(farthest, _MIN_MM + thickness)
    is_end = far > edges[side] - thickness
    where, side = where[is_end], side[is_end]
    volumes = np.bincount(side, minlength=6) * grid.volume_ml_per_voxel * 1000
    # Smoothing mixes the HU of an organ with those around it, except in the middle of a thick one.
    smooth = smooth_image(np.clip(hu[box], *_HU).astype(np.float32), grid.spacing, _SMOOTHING_MM)
    middles = float(np.median(smooth[organ[box]])), float(np.median(hu[box][organ[box]]))
    usual_hu = min(middles) - _ALIKE_HU, max(middles) + _ALIKE_HU
    found = []
    for number in np.argsort(-volumes):
        if volumes[number] < _MIN_MM2 * thickness:
            break
        center = where[side == number].mean(axis=0) + start
        outward = (center - click) * steps
        length = max(float(np.linalg.norm(outward)), 1e-6)
        for farther in _OUTWARD_MM:
            point = np.rint(click + outward * (length + farther) / length / steps).astype(np.int64)
            if (point < 0).any() or (point >= grid.shape).any():
                continue
            deepest, depth = _find_deepest_voxel(organ, hu, free, grid, point, usual_hu)
            if depth > 0 and (depth >= _DEEP * farther or farther == _OUTWARD_MM[-1]):
                found.append(deepest)
                break
    return found


def _find_deepest_voxel(
    organ: Mask,
    hu: NDArray[np.integer],
    free: Mask,
    grid: Grid,
    point: NDArray[np.int64],
    usual_hu: tuple[float, float],
) -> tuple[NDArray[np.int64], float]:
    """Return the voxel near ``point`` that is deepest in tissue within ``usual_hu``, and its depth in mm.

    The depth is not positive if there is no such tissue.
    """
    box = make_box_around(point[None], grid, 2 * (_AROUND_MM + _MAX_DEPTH_MM))
    smooth = smooth_image(np.clip(hu[box], *_HU).astype(np.float32), grid.spacing, _SMOOTHING_MM)
    alike = (smooth > usual_hu[0]) & (smooth < usual_hu[1]) & free[box] & ~organ[box]
    if not alike.any():
        return point, 0.0
    image = crop_grid(grid, box).make_image(alike.astype(np.uint8))
    depth: FloatArray = -sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))
    start = np.array([side.start for side in box])
    z, y, x = np.ogrid[tuple(slice(side.start, side.stop) for side in box)]
    steps = np.array(grid.spacing[::-1])
    square = sum(((axis - at) * step) ** 2 for axis, at, step in zip((z, y, x), point, steps, strict=True))
    depth = np.where(alike & (square <= _AROUND_MM**2), depth, -1.0)
    best = np.array(np.unravel_index(int(depth.argmax()), depth.shape))
    return best + start, float(depth.max())
