"""One structure of the body: its shape, what it is made of and how close it comes to its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .block import Block, Slices
from .fields import FAR, Array, Point, Shape, smooth_minimum
from .materials import Material


@dataclass(frozen=True)
class Structure:
    """A union of ``parts``, less the parts it is ``carved`` by.

    ``key`` is the organ's key in the vocabulary where ``label`` is not 0. ``blend`` (mm) rounds the seams between
    parts. ``gap`` (mm) is the fat plane it leaves to structures laid before it, None where it may lie inside them.
    ``wall_gap`` and ``diaphragm_gap`` (mm) confine it to the cavity and below the diaphragm (None: not confined;
    ``thoracic``: above it). ``volume_ml`` is the volume its surface is moved to, by at most ``give`` mm;
    ``offset`` (mm, outward) is that move. ``inlays`` lie inside it and carry its label.
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
        """The box (mm) around all parts."""
        return union_box(self.parts)


def union_box(shapes: tuple[Shape, ...]) -> tuple[Point, Point]:
    """The box (mm) around all shapes."""
    low = np.min([shape.box[0] for shape in shapes], axis=0)
    high = np.max([shape.box[1] for shape in shapes], axis=0)
    return tuple(low.tolist()), tuple(high.tolist())


def union(shapes: tuple[Shape, ...], block: Block, part: Slices, blend: float = 0.0, grown: float = 0.0) -> Array:
    """Distance (mm) to the union of shapes on a part of a block, ``FAR`` where none is near."""
    result: Array = np.full([s.stop - s.start for s in part], FAR, dtype=np.float32)
    for shape in shapes:
        low, high = shape.box
        pad = max(grown, 0.0)
        where = block.slices((_moved(low, -pad), _moved(high, pad)))
        if where is None:
            continue
        inner = tuple(slice(max(w.start, p.start), min(w.stop, p.stop)) for w, p in zip(where, part, strict=True))
        if any(s.start >= s.stop for s in inner):
            continue
        local = tuple(slice(i.start - p.start, i.stop - p.start) for i, p in zip(inner, part, strict=True))
        distance = shape(*block[inner])  # type: ignore[index]
        result[local] = smooth_minimum(result[local], distance, blend)
    return result


def free_distance(structure: Structure, block: Block, part: Slices) -> Array:
    """Distance to the structure's own shape, before its offset, neighbours and walls."""
    grown = structure.offset if structure.volume_ml is None else max(structure.give, structure.offset)
    distance = union(structure.parts, block, part, structure.blend, grown)
    if structure.carved:
        np.maximum(distance, -union(structure.carved, block, part), out=distance)
    return distance


def bounds_distance(structure: Structure, block: Block, part: Slices, occupied: Array) -> Array:
    """Distance to what confines the structure: cavity wall, diaphragm, structures laid before it (``occupied``)."""
    bounds = np.full_like(occupied[part], -FAR)
    if structure.wall_gap is not None:
        np.maximum(bounds, block.cavity[part] + structure.wall_gap, out=bounds)
    if structure.diaphragm_gap is not None:
        side = -block.diaphragm[part] if structure.thoracic else block.diaphragm[part]
        np.maximum(bounds, side + structure.diaphragm_gap, out=bounds)
    if structure.gap is not None:
        np.maximum(bounds, structure.gap - occupied[part], out=bounds)
    return bounds


def place(structure: Structure, block: Block, occupied: Array) -> tuple[Slices, Array] | None:
    """Where the structure lies in the block: the part of it and the distances there, None if nowhere near.

    ``occupied``, the distance to the nearest structure laid so far, is brought up to date.
    """
    low, high = structure.box
    pad = max(structure.offset, 0.0)
    part = block.slices((_moved(low, -pad), _moved(high, pad)))
    if part is None:
        return None
    distance = free_distance(structure, block, part)
    distance -= structure.offset
    np.maximum(distance, bounds_distance(structure, block, part, occupied), out=distance)
    np.minimum(occupied[part], distance, out=occupied[part])
    return part, distance


def nothing_yet(block: Block) -> Array:
    """``occupied`` of a block in which nothing has been laid."""
    return np.full(block.x.shape, FAR, dtype=np.float32)


def _moved(point: Point, by: float) -> Point:
    return point[0] + by, point[1] + by, point[2] + by
