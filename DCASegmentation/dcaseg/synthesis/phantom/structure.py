"""A structure of the body (shape, material and constraints) and the blocks of points where it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .body import Body
from .materials import Material
from .shapes import FAR, Array, Point, Shape, smooth_minimum

_STRIDE = 4
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class SampleGrid:
    """Sample points of a block. All arrays are (z, y, x) of the same size.

    ``x``, ``y``, ``z`` are reference coordinates (mm), ``cavity`` and ``diaphragm`` distances (mm) of ``body.Body``.
    ``axes`` holds the coordinates along z, y and x if the points form a regular grid in reference coordinates.
    """

    x: Array
    y: Array
    z: Array
    cavity: Array
    diaphragm: Array
    axes: tuple[Array, Array, Array] | None = None

    @classmethod
    def from_box(cls, box: tuple[Point, Point], step: float, body: Body) -> SampleGrid:
        """A regular block of points, ``step`` mm apart, that fills ``box``."""
        axes = [np.arange(low, high + step, step, dtype=np.float32) for low, high in zip(*box, strict=True)]
        z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij", sparse=True)
        shape = (axes[2].size, axes[1].size, axes[0].size)
        full_x, full_y, full_z = (np.ascontiguousarray(np.broadcast_to(array, shape)) for array in (x, y, z))
        cavity = body.compute_cavity_distance(x, y, z).astype(np.float32)
        diaphragm = body.compute_diaphragm_distance(x, y, z).astype(np.float32)
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
        """Largest step (mm) between neighboring thinned points, by coordinate."""
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

    def find_slices(self, box: tuple[Point, Point]) -> Slices | None:
        """The part of the block that may be inside ``box`` (mm); None if no part is."""
        if self.axes is not None:
            return _find_regular_slices(self.axes, box)
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
        """Coordinates (x, y, z) of a part of the block."""
        return self.x[part], self.y[part], self.z[part]


def _find_regular_slices(axes: tuple[Array, Array, Array], box: tuple[Point, Point]) -> Slices | None:
    ranges = []
    for axis, low, high in zip(axes, box[0][::-1], box[1][::-1], strict=True):
        first, last = np.searchsorted(axis, low), np.searchsorted(axis, high, side="right")
        if first >= last:
            return None
        ranges.append(slice(int(first), int(last)))
    return ranges[0], ranges[1], ranges[2]


@dataclass(frozen=True)
class Structure:
    """A union of ``parts`` minus the shapes in ``carved``.

    ``key`` is the organ's key in the vocabulary if ``label`` is not 0. ``blend`` (mm) rounds the seams between parts.
    ``gap`` (mm) is the fat plane to structures placed before it; None allows it to be inside them. ``wall_gap`` and
    ``diaphragm_gap`` (mm) keep it inside the cavity and below the diaphragm (None: no constraint; ``thoracic``: above
    the diaphragm). ``volume_ml`` is the target volume: the surface is moved by ``offset`` (mm, outward), at most
    ``give`` mm, to reach it. ``inlays`` are inside the structure and have its label.
    """

    key: str
    parts: tuple[Shape, ...]
    material: Material
    label: int = 0
    carved: tuple[Shape, ...] = ()
    blend: float = 0.0
    gap: float | None = 1.0
    wall_gap: float | None = 3.0
    diaphragm_gap: float | None = 3.0
    thoracic: bool = False
    volume_ml: float | None = None
    give: float = 6.0
    offset: float = 0.0
    inlays: tuple[tuple[tuple[Shape, ...], Material], ...] = ()

    @cached_property
    def box(self) -> tuple[Point, Point]:
        """The bounding box (mm) of all parts."""
        return compute_union_box(self.parts)


def compute_union_box(shapes: tuple[Shape, ...]) -> tuple[Point, Point]:
    """The bounding box (mm) of all shapes."""
    low = np.min([shape.box[0] for shape in shapes], axis=0)
    high = np.max([shape.box[1] for shape in shapes], axis=0)
    return tuple(low.tolist()), tuple(high.tolist())


def compute_union_distance(
    shapes: tuple[Shape, ...], block: SampleGrid, part: Slices, blend: float = 0.0, grown: float = 0.0
) -> Array:
    """Distance (mm) to the union of ``shapes`` in a part of a block; ``FAR`` away from all of them."""
    result: Array = np.full([s.stop - s.start for s in part], FAR, dtype=np.float32)
    for shape in shapes:
        low, high = shape.box
        pad = max(grown, 0.0)
        near = block.find_slices((_shift_point(low, -pad), _shift_point(high, pad)))
        if near is None:
            continue
        inner = tuple(slice(max(n.start, p.start), min(n.stop, p.stop)) for n, p in zip(near, part, strict=True))
        if any(s.start >= s.stop for s in inner):
            continue
        local = tuple(slice(i.start - p.start, i.stop - p.start) for i, p in zip(inner, part, strict=True))
        distance = shape(*block[inner])  # type: ignore[index]
        result[local] = smooth_minimum(result[local], distance, blend)
    return result


def compute_free_distance(structure: Structure, block: SampleGrid, part: Slices) -> Array:
    """Distance (mm) to the structure's own shape, before offset, neighbors and walls."""
    grown = structure.offset if structure.volume_ml is None else max(structure.give, structure.offset)
    distance = compute_union_distance(structure.parts, block, part, structure.blend, grown)
    if structure.carved:
        np.maximum(distance, -compute_union_distance(structure.carved, block, part), out=distance)
    return distance


def compute_bounds_distance(structure: Structure, block: SampleGrid, part: Slices, occupied: Array) -> Array:
    """Distance (mm) to what confines the structure: cavity wall, diaphragm, and earlier structures (``occupied``)."""
    bounds = np.full_like(occupied[part], -FAR)
    if structure.wall_gap is not None:
        np.maximum(bounds, block.cavity[part] + structure.wall_gap, out=bounds)
    if structure.diaphragm_gap is not None:
        side = -block.diaphragm[part] if structure.thoracic else block.diaphragm[part]
        np.maximum(bounds, side + structure.diaphragm_gap, out=bounds)
    if structure.gap is not None:
        np.maximum(bounds, structure.gap - occupied[part], out=bounds)
    return bounds


def place(structure: Structure, block: SampleGrid, occupied: Array) -> tuple[Slices, Array] | None:
    """Place the structure in the block: the part of the block and the distances (mm) there; None if it is not near.

    Updates ``occupied``, the distance (mm) to the nearest structure placed so far.
    """
    low, high = structure.box
    pad = max(structure.offset, 0.0)
    part = block.find_slices((_shift_point(low, -pad), _shift_point(high, pad)))
    if part is None:
        return None
    distance = compute_free_distance(structure, block, part)
    distance -= structure.offset
    np.maximum(distance, compute_bounds_distance(structure, block, part, occupied), out=distance)
    np.minimum(occupied[part], distance, out=occupied[part])
    return part, distance


def create_empty_distance(block: SampleGrid) -> Array:
    """``occupied`` for a block without any structure."""
    return np.full(block.x.shape, FAR, dtype=np.float32)


def _shift_point(point: Point, by: float) -> Point:
    return point[0] + by, point[1] + by, point[2] + by
