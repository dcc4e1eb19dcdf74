"""Shapes as signed distance functions: the approximate distance in mm to the surface, negative inside.

A shape is evaluated on three coordinate arrays of the same size. Its box (mm) contains every point closer than
``MARGIN``, so that the shape need not be evaluated outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Point = tuple[float, float, float]

MARGIN = 8.0
"""Range (mm) outside the surface of a shape in which its distance is needed."""
FAR = np.float32(30.0)
"""Distance (mm) used for points that are not near a shape."""


class Shape(Protocol):
    """A shape with a box and a signed distance."""

    @property
    def box(self) -> tuple[Point, Point]:
        """Lower and upper corner (x, y, z) in mm of the box around the shape, including ``MARGIN``."""

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance (mm) at the points with these coordinates (mm)."""


def compute_rotation_matrix(degrees: Point) -> NDArray[np.float64]:
    """The matrix (3, 3) that rotates about x, then y, then z by these angles."""
    angles = np.deg2rad(degrees)
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with semi-axes ``radii`` (mm), rotated by ``degrees`` about x, y and z."""

    center: Point
    radii: Point
    degrees: Point = (0.0, 0.0, 0.0)

    @cached_property
    def box(self) -> tuple[Point, Point]:
        """See ``Shape``."""
        reach = np.sqrt(((compute_rotation_matrix(self.degrees) * np.array(self.radii)) ** 2).sum(axis=1)) + MARGIN
        return _make_box(np.array(self.center) - reach, np.array(self.center) + reach)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """See ``Shape``."""
        axes = compute_rotation_matrix(self.degrees).T.astype(np.float32)
        px, py, pz = x - self.center[0], y - self.center[1], z - self.center[2]
        scaled, gradient = np.zeros_like(px), np.zeros_like(px)
        for axis, radius in zip(axes, self.radii, strict=True):
            along = px * axis[0]
            along += py * axis[1]
            along += pz * axis[2]
            along *= 1.0 / radius
            np.square(along, out=along)
            scaled += along
            along *= 1.0 / radius**2
            gradient += along
        # First-order distance: the implicit function divided by its gradient.
        np.sqrt(gradient, out=gradient)
        np.maximum(gradient, 1e-6, out=gradient)
        return np.asarray((scaled - np.sqrt(scaled)) / gradient)


@dataclass(frozen=True)
class Capsule:
    """A cone with spherical ends from ``start`` to ``end``, with radii in mm.

    ``flatness`` above 1 flattens its cross-section from front to back by that factor.
    """

    start: Point
    end: Point
    start_radius: float
    end_radius: float
    flatness: float = 1.0

    @cached_property
    def box(self) -> tuple[Point, Point]:
        """See ``Shape``."""
        reach = max(self.start_radius, self.end_radius) + MARGIN
        ends = np.array([self.start, self.end])
        return _make_box(ends.min(axis=0) - reach, ends.max(axis=0) + reach)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """See ``Shape``."""
        ax, ay, az = self.start
        bx, by, bz = self.end[0] - ax, (self.end[1] - ay) * self.flatness, self.end[2] - az
        px, py, pz = x - ax, y - ay, z - az
        if self.flatness != 1.0:
            py *= self.flatness
        t = px * bx
        t += py * by
        t += pz * bz
        t *= 1.0 / max(bx * bx + by * by + bz * bz, 1e-6)
        np.clip(t, 0.0, 1.0, out=t)
        px -= t * bx
        py -= t * by
        pz -= t * bz
        px *= px
        py *= py
        pz *= pz
        px += py
        px += pz
        np.sqrt(px, out=px)
        t *= self.end_radius - self.start_radius
        px -= t
        px -= self.start_radius
        return px


@dataclass(frozen=True)
class Region:
    """Any function of the coordinates, evaluated only inside ``box``."""

    function: Callable[[Array, Array, Array], Array]
    box: tuple[Point, Point]

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """See ``Shape``."""
        return self.function(x, y, z)


def tube(
    points: Sequence[Point], radii: Sequence[float] | float, pieces: int = 4, flatness: float = 1.0
) -> tuple[Capsule, ...]:
    """A tube along a Catmull-Rom curve through ``points`` (mm), with ``pieces`` capsules between two points."""
    nodes = np.asarray(points, dtype=float)
    widths = np.broadcast_to(np.asarray(radii, dtype=float), (len(nodes),))
    line = interpolate_catmull_rom(np.column_stack([nodes, widths]), pieces)
    return tuple(
        Capsule(_to_point(a[:3]), _to_point(b[:3]), float(a[3]), float(b[3]), flatness) for a, b in pairwise(line)
    )


def interpolate_catmull_rom(nodes: NDArray[np.float64], pieces: int) -> NDArray[np.float64]:
    """Points of the Catmull-Rom curve through ``nodes`` (n, dimensions), ``pieces`` for each segment."""
    padded = np.vstack([2 * nodes[0] - nodes[1], nodes, 2 * nodes[-1] - nodes[-2]])
    t = np.linspace(0.0, 1.0, pieces, endpoint=False)[:, None]
    stretches = []
    for p0, p1, p2, p3 in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        cubic = -p0 + 3 * p1 - 3 * p2 + p3
        square = 2 * p0 - 5 * p1 + 4 * p2 - p3
        stretches.append(0.5 * (2 * p1 + (p2 - p0) * t + square * t**2 + cubic * t**3))
    return np.vstack([*stretches, nodes[-1]])


def smooth_minimum(a: Array, b: Array, width: float) -> Array:
    """The distance to the union of two shapes with a fillet of about ``width`` mm (0: a sharp edge)."""
    if width <= 0:
        return np.minimum(a, b)
    fillet = np.maximum(width - np.abs(a - b), 0.0)
    return np.minimum(a, b) - fillet * fillet * (0.25 / width)


def smooth_maximum(a: Array, b: Array, width: float) -> Array:
    """The distance to the intersection of two shapes with an edge rounded by about ``width`` mm."""
    return -smooth_minimum(-a, -b, width)


def _to_point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def _make_box(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[Point, Point]:
    return _to_point(low), _to_point(high)
