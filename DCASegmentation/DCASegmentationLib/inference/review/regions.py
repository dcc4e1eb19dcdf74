"""Weights on a grid cut into connected regions that can be looked at in one go, the heaviest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..label_boxes import Box
from .components import pieces_of_mask
from .evidence import Bytes

Weights = NDArray[np.int64]
Mask = NDArray[np.bool_]
Limit = Callable[[Box, Mask], float]
"""How many voxels a region may have, given the box and the mask in it of one that is about to be made."""

# Boxes move in steps of about this many mm; on finer grids voxels are added up first.
_STEP_MM = 4.0


def regions(
    weights: Weights,
    spacing: Sequence[float],
    across_mm: float,
    most: int,
    limit: Limit | None = None,
    kinds: Bytes | None = None,
) -> Bytes:
    """Numbers 1 to ``most`` at most for the voxels of each region, 0 elsewhere.

    ``weights`` (z, y, x), 0 or more, are integers, so that nothing depends on the order of a sum; ``spacing`` is in
    the same order, in mm. Again and again: of all boxes no wider than ``across_mm`` along any axis the one that holds
    most of the weight that is left, and in it the heaviest piece of connected voxels (26 neighbors). A region is thus
    the heavy part of what is next to each other, and neighbors that fit into one box are one region. Voxels of
    different ``kinds`` are never in one region: of a box, the kind with most weight is taken. A region with more
    voxels than its ``limit`` is halved across its longest side, again and again, and the heaviest part of it taken; the
    rest is there for the next.
    """
    left = weights.copy()
    numbers = np.zeros(weights.shape, np.uint8)
    tile = tuple(max(round(_STEP_MM / step), 1) for step in spacing)
    side = tuple(max(int(across_mm / (step * count) + 1e-6), 1) for step, count in zip(spacing, tile, strict=True))
    tiles = _added_up(left, tile)
    sums = _box_sums(tiles, side)
    for number in range(1, most + 1):
        corner = tuple(int(index) for index in np.unravel_index(int(sums.argmax()), sums.shape))
        if sums[corner] == 0:
            break
        box = _slices(
            [start * count for start, count in zip(corner, tile, strict=True)],
            [(start + length) * count for start, length, count in zip(corner, side, tile, strict=True)],
            weights.shape,
        )
        inside = left[box] if kinds is None else _heaviest_kind(left[box], kinds[box])
        taken = _heaviest_piece(inside)
        if limit is not None:
            taken = _cut_down(inside, taken, spacing, limit(box, taken))
        numbers[box][taken] = number
        left[box][taken] = 0
        tiles[_slices(corner, [start + length for start, length in zip(corner, side, strict=True)], tiles.shape)] = (
            _added_up(left[box], tile)
        )
        # Only boxes that overlap this one have changed.
        first = [max(start - length + 1, 0) for start, length in zip(corner, side, strict=True)]
        near = _slices(first, [start + 2 * length - 1 for start, length in zip(corner, side, strict=True)], tiles.shape)
        changed = _box_sums(tiles[near], side)
        sums[_slices(first, [start + length for start, length in zip(first, changed.shape, strict=True)])] = changed
    return numbers


def _heaviest_kind(weights: Weights, kinds: Bytes) -> Weights:
    """``weights`` of the kind that has most of them, 0 for the others."""
    totals = np.zeros(256, np.int64)
    np.add.at(totals, kinds.ravel(), weights.ravel())
    return np.where(kinds == int(totals.argmax()), weights, 0)


def _cut_down(weights: Weights, piece: Mask, spacing: Sequence[float], most: float) -> Mask:
    """The heaviest connected part of ``piece`` with ``most`` voxels at most, and one at least."""
    while np.count_nonzero(piece) > max(most, 1):
        others = [tuple(other for other in range(3) if other != axis) for axis in range(3)]
        ends = [np.flatnonzero(piece.any(axis=other)) for other in others]
        axis = int(np.argmax([(end[-1] - end[0] + 1) * step for end, step in zip(ends, spacing, strict=True)]))
        if ends[axis][0] == ends[axis][-1]:
            axis = int(np.argmax([end[-1] - end[0] for end in ends]))
        first, last = int(ends[axis][0]), int(ends[axis][-1])
        within = np.where(piece, weights, 0)
        along = within.sum(axis=others[axis])
        middle = (first + last + 1) // 2
        lower = along[:middle].sum() >= along[middle:].sum()
        index: list[slice] = [slice(None)] * 3
        index[axis] = slice(middle, None) if lower else slice(None, middle)
        within[tuple(index)] = 0
        piece = _heaviest_piece(within)
    return piece


def _heaviest_piece(weights: Weights) -> NDArray[np.bool_]:
    pieces, count = pieces_of_mask(weights > 0)
    totals = np.zeros(count + 1, np.int64)
    np.add.at(totals, pieces.ravel(), weights.ravel())
    return np.asarray(pieces == int(totals[1:].argmax()) + 1)


def _added_up(weights: Weights, tile: Sequence[int]) -> Weights:
    """Sums over tiles of so many voxels; those at the end may be smaller."""
    for axis, count in enumerate(tile):
        if count > 1:
            weights = np.add.reduceat(weights, range(0, weights.shape[axis], count), axis=axis)
    return weights.copy()


def _box_sums(tiles: Weights, side: Sequence[int]) -> Weights:
    """For each box of ``side`` tiles that lies within the grid its sum, at the index of its first tile; along an axis
    shorter than the box there is one."""
    for axis, wanted in enumerate(side):
        along = np.moveaxis(tiles, axis, 0)
        length = min(wanted, len(along))
        sums = np.zeros((len(along) + 1, *along.shape[1:]), np.int64)
        np.cumsum(along, axis=0, out=sums[1:])
        tiles = np.moveaxis(sums[length:] - sums[:-length], 0, axis)
    return tiles


def _slices(first: Sequence[int], stop: Sequence[int], shape: Sequence[int] | None = None) -> Box:
    """Slices from ``first`` to ``stop``, no further than ``shape``."""
    ends = stop if shape is None else [min(end, length) for end, length in zip(stop, shape, strict=True)]
    z, y, x = (slice(begin, end) for begin, end in zip(first, ends, strict=True))
    return z, y, x
