"""Weights on a grid cut into connected regions that can be looked at in one go, the heaviest first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..label_boxes import Box
from .components import pieces_of_mask
from .evidence import Bytes

Weights = NDArray[np.int64]

# Boxes move in steps of about this many mm; on finer grids voxels are added up first.
_STEP_MM = 4.0


def regions(weights: Weights, spacing: Sequence[float], across_mm: float, most: int) -> Bytes:
    """Numbers 1 to ``most`` at most for the voxels of each region, 0 elsewhere.

    ``weights`` (z, y, x), 0 or more, are integers, so that nothing depends on the order of a sum; ``spacing`` is in
    the same order, in mm. Again and again: of all boxes no wider than ``across_mm`` along any axis the one that holds
    most of the weight that is left, and in it the heaviest piece of connected voxels (26 neighbors). A region is thus
    the heavy part of what is next to each other, and neighbors that fit into one box are one region.
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
        taken = _heaviest_piece(left[box])
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
