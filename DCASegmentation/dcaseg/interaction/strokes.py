"""Strokes that a user draws (clicks and scribbles), and the voxels they cover in a CT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..imaging.grid import Grid
from ..types import Box

Point = tuple[float, float, float]

_MAX_POINTS = 10_000


@dataclass(frozen=True)
class Stroke:
    """A click (one point) or a scribble (a polyline), in mm, RAS as in Slicer.

    ``add`` says whether the points belong to the organ. None lets the mask decide: a stroke outside the organ adds, a
    stroke inside removes. Raises UserError for no points, too many points, or coordinates that are not finite.
    """

    points: tuple[Point, ...]
    add: bool | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise UserError("A stroke needs at least one point.", "Click into the CT.")
        if len(self.points) > _MAX_POINTS:
            raise UserError(f"A scribble of {len(self.points)} points is too long.", "Draw several shorter scribbles.")
        if not all(len(point) == 3 and np.isfinite(point).all() for point in self.points):
            raise UserError("A point must be three finite numbers.", "Specify x,y,z in mm (RAS).")

    @classmethod
    def click(cls, x: float, y: float, z: float, add: bool | None = None) -> Stroke:
        """Return a stroke of a single point (RAS, mm)."""
        return cls(((float(x), float(y), float(z)),), add)


def to_indices(points: Sequence[Point], grid: Grid) -> NDArray[np.int64]:
    """Return the voxels (n, 3), in the order (z, y, x), that contain ``points`` (RAS, mm).

    Raises UserError if a point lies outside the grid.
    """
    lps = np.asarray(points, float) * (-1.0, -1.0, 1.0)
    index = np.rint((lps - np.array(grid.origin)) @ grid.axes / np.array(grid.spacing)).astype(np.int64)
    outside = np.flatnonzero((index < 0).any(axis=1) | (index >= np.array(grid.size)).any(axis=1))
    if len(outside):
        point = ", ".join(f"{value:g}" for value in points[int(outside[0])])
        low, high = _compute_extent(grid)
        ranges = ", ".join(f"{name} {a:.0f} to {b:.0f}" for name, a, b in zip("RAS", low, high, strict=True))
        raise UserError(f"The point ({point}) lies outside the CT.", f"The CT covers {ranges} mm.")
    return index[:, ::-1]


def to_point(index: Sequence[int], grid: Grid) -> Point:
    """Return the center (RAS, mm) of the voxel ``index`` (z, y, x)."""
    steps = np.array(index[::-1], float) * np.array(grid.spacing)
    x, y, z = (np.array(grid.origin) + grid.axes @ steps) * (-1.0, -1.0, 1.0)
    return float(x), float(y), float(z)


def rasterize(points: Sequence[Point], grid: Grid) -> NDArray[np.int64]:
    """Return the voxels (n, 3), in the order (z, y, x), of the polyline through ``points`` (RAS, mm), each once.

    Raises UserError if a point lies outside the grid.
    """
    corners = to_indices(points, grid)
    parts = [corners[:1]]
    for start, stop in pairwise(corners):
        count = int(np.abs(stop - start).max()) + 1
        parts.append(np.rint(np.linspace(start, stop, count)).astype(np.int64))
    return np.unique(np.concatenate(parts), axis=0)


def make_box_around(voxels: NDArray[np.int64], grid: Grid, side_mm: float) -> Box:
    """Return a box (z, y, x) with sides of ``side_mm`` around ``voxels`` (n, 3), clipped to the CT.

    The box is larger if a scribble does not fit into it.
    """
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    slices = []
    for axis, (first, last) in enumerate(zip(low, high, strict=True)):
        half = max(1, round(side_mm / 2 / grid.spacing[2 - axis]))
        middle = (int(first) + int(last)) // 2
        margin = half // 4
        start, stop = min(middle - half, int(first) - margin), max(middle + half, int(last) + margin) + 1
        slices.append(slice(max(0, start), min(grid.shape[axis], stop)))
    return slices[0], slices[1], slices[2]


def make_box_from_corners(corners: tuple[Point, Point], grid: Grid) -> Box:
    """Return the box (z, y, x) between two opposite ``corners`` (RAS, mm), clipped to the CT.

    Raises UserError if it is empty.
    """
    values = np.asarray(corners, float)
    if values.shape != (2, 3) or not np.isfinite(values).all():
        raise UserError("A box needs two opposite corners.", "Specify two points of three numbers each, in mm (RAS).")
    every = [(x, y, z) for x in values[:, 0] for y in values[:, 1] for z in values[:, 2]]
    lps = np.asarray(every) * (-1.0, -1.0, 1.0)
    index = np.rint((lps - np.array(grid.origin)) @ grid.axes / np.array(grid.spacing))[:, ::-1]
    low = np.maximum(index.min(axis=0), 0).astype(int)
    high = np.minimum(index.max(axis=0) + 1, grid.shape).astype(int)
    if (high - low < 2).any():
        raise UserError("The box contains no voxels of the CT.", "Draw a larger box, inside the CT.")
    z, y, x = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    return z, y, x


def is_between_corners(corners: tuple[Point, Point], grid: Grid, box: Box) -> NDArray[np.bool_]:
    """Return for each voxel (z, y, x) of ``box`` whether it touches the box between two ``corners`` (RAS, mm).

    A voxel touches it if its center is at most half a voxel outside, along each axis of the CT.
    """
    lps = np.asarray(corners, float) * (-1.0, -1.0, 1.0)
    low, high = lps.min(axis=0), lps.max(axis=0)
    half = np.abs(grid.axes) @ (np.array(grid.spacing) / 2)
    steps = [np.arange(side.start, side.stop) * step for side, step in zip(box, grid.spacing[::-1], strict=True)]
    result = np.ones(tuple(len(each) for each in steps), bool)
    for axis in range(3):
        z, y, x = (steps[k] * grid.axes[axis, 2 - k] for k in range(3))
        position = grid.origin[axis] + z[:, None, None] + y[:, None] + x
        result &= (position >= low[axis] - half[axis] - 1e-6) & (position <= high[axis] + half[axis] + 1e-6)
    return result


def is_inside_box(voxels: NDArray[np.int64], box: Box) -> NDArray[np.bool_]:
    """Return for each of ``voxels`` (n, 3) whether it lies in ``box``."""
    low, high = np.array([s.start for s in box]), np.array([s.stop for s in box])
    return np.asarray(((voxels >= low) & (voxels < high)).all(axis=1))


def _compute_extent(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    corners = grid.get_corners() * (-1.0, -1.0, 1.0)
    return corners.min(axis=0), corners.max(axis=0)
