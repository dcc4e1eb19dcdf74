"""A block of sample points and what is known at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .body import Body
from .fields import Array, Point

_STRIDE = 4
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Block:
    """Sample points of one block, all arrays of one size.

    ``x``, ``y``, ``z``: reference coordinates (mm). ``cavity``, ``diaphragm``: distances (mm) of body.Body.
    ``axes``: the coordinates along z, y and x where the points lie on a regular grid of reference coordinates.
    """

    x: Array
    y: Array
    z: Array
    cavity: Array
    diaphragm: Array
    axes: tuple[Array, Array, Array] | None = None

    @classmethod
    def around(cls, box: tuple[Point, Point], step: float, body: Body) -> Block:
        """A regular block of points ``step`` mm apart that fills ``box``."""
        axes = [np.arange(low, high + step, step, dtype=np.float32) for low, high in zip(*box, strict=True)]
        z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij", sparse=True)
        shape = (axes[2].size, axes[1].size, axes[0].size)
        full_x, full_y, full_z = (np.ascontiguousarray(np.broadcast_to(array, shape)) for array in (x, y, z))
        cavity = body.cavity(x, y, z).astype(np.float32)
        diaphragm = body.diaphragm(x, y, z).astype(np.float32)
        return cls(full_x, full_y, full_z, cavity, diaphragm, (axes[2], axes[1], axes[0]))

    @cached_property
    def _nodes(self) -> tuple[NDArray[np.int64], ...]:
        return tuple(np.unique(np.append(np.arange(0, count, _STRIDE), count - 1)) for count in self.x.shape)

    @cached_property
    def _corners(self) -> tuple[Array, ...]:
        thin = np.ix_(*self._nodes)
        return tuple(array[thin] for array in (self.x, self.y, self.z))

    @cached_property
    def _reach(self) -> tuple[float, ...]:
        """Largest step (mm) between neighbouring thinned points, by coordinate."""
        return tuple(
            sum(float(np.abs(np.diff(corner, axis=axis)).max(initial=0.0)) for axis in range(3))
            for corner in self._corners
        )

    @cached_property
    def _extent(self) -> tuple[Point, Point]:
        """Lowest and highest coordinates (mm), widened by ``_reach``."""
        low = [float(corner.min()) - step for corner, step in zip(self._corners, self._reach, strict=True)]
        high = [float(corner.max()) + step for corner, step in zip(self._corners, self._reach, strict=True)]
        return tuple(low), tuple(high)  # type: ignore[return-value]

    def slices(self, box: tuple[Point, Point]) -> Slices | None:
        """The part of the block that may lie in ``box`` (mm), None if nothing does."""
        if self.axes is not None:
            return _regular_slices(self.axes, box)
        lowest, highest = self._extent
        if any(b < a for a, b in zip(lowest, box[1], strict=True)) or any(
            b > a for a, b in zip(highest, box[0], strict=True)
        ):
            return None
        inside: NDArray[np.bool_] | None = None
        for corner, low, high, reach in zip(self._corners, *box, self._reach, strict=True):
            near = (corner >= low - reach) & (corner <= high + reach)
            inside = near if inside is None else inside & near
        assert inside is not None
        ranges = []
        for axis in range(3):
            hits = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            if hits.size == 0:
                return None
            nodes = self._nodes[axis]
            ranges.append(slice(int(nodes[hits[0]]), int(nodes[hits[-1]]) + 1))
        return ranges[0], ranges[1], ranges[2]

    def __getitem__(self, part: Slices) -> tuple[Array, Array, Array]:
        """Coordinates of a part of the block."""
        return self.x[part], self.y[part], self.z[part]


def _regular_slices(axes: tuple[Array, Array, Array], box: tuple[Point, Point]) -> Slices | None:
    ranges = []
    for axis, low, high in zip(axes, box[0][::-1], box[1][::-1], strict=True):
        first, last = np.searchsorted(axis, low), np.searchsorted(axis, high, side="right")
        if first >= last:
            return None
        ranges.append(slice(int(first), int(last)))
    return ranges[0], ranges[1], ranges[2]
