"""Voxels that are likely wrong, cut into connected regions that can be looked at in one go.

A network is sure of borders that lie half a voxel off, so its own probabilities understate errors where they are small,
and where they are large, overstate them. The table was counted on synthetic people (``evaluation.review_evaluation``,
those for tuning) with both shipped models, which agreed within some 0.03; it says nothing of other data, where the
order of places stands but the ml may be off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..inference.postprocessing import numbered
from ..types import Box
from .evidence import Bytes, Evidence

Mask = NDArray[np.bool_]
Pieces = NDArray[np.uint32]


def pieces_of_mask(mask: Mask, corners: bool = True) -> tuple[Pieces, int]:
    """The pieces of ``mask`` as ``inference.postprocessing.numbered`` counts them, and how many there are."""
    pieces = sitk.GetArrayFromImage(numbered(mask, corners)).astype(np.uint32)
    return pieces, int(pieces.max(initial=0))


def each_piece(pieces: Pieces, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, Box, Mask]]:
    """Number, box and mask within the box of each piece that is ``wanted``, an array with a place for each number.

    In noise there are thousands of pieces: none is looked for among all voxels.
    """
    where = np.flatnonzero(wanted.take(pieces))
    numbers = pieces.ravel()[where]
    # Stable, so that the voxels of a piece stay in order.
    order = np.argsort(numbers, kind="stable")
    where, numbers = where[order], numbers[order]
    if not numbers.size:
        return
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    for start, voxels in zip(starts, np.split(where, starts[1:]), strict=True):
        index = np.unravel_index(voxels, pieces.shape)
        z, y, x = (slice(int(along.min()), int(along.max()) + 1) for along in index)
        mask = np.zeros((z.stop - z.start, y.stop - y.start, x.stop - x.start), np.bool_)
        mask[tuple(along - side.start for along, side in zip(index, (z, y, x), strict=True))] = True
        yield int(numbers[start]), (z, y, x), mask


def box_of(mask: Mask, margin: int = 0) -> Box | None:
    """The box around ``mask``, ``margin`` voxels wider where the array allows; None for an empty mask."""
    found = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if hit.size == 0:
            return None
        found.append(slice(max(int(hit[0]) - margin, 0), min(int(hit[-1]) + 1 + margin, mask.shape[axis])))
    return found[0], found[1], found[2]


def grown(mask: Mask) -> Mask:
    """``mask`` and the voxels next to it, corners included."""
    result = mask
    for axis in range(3):
        moved = np.moveaxis(result, axis, 0)
        wider = moved.copy()
        wider[1:] |= moved[:-1]
        wider[:-1] |= moved[1:]
        result = np.moveaxis(wider, 0, axis)
    return result


@dataclass(frozen=True)
class Scoring:
    """How doubt becomes places and their order.

    A voxel is doubtful where it is among those that hold ``doubtful_share`` of all that is expected to be wrong (see
    ``likelihood``), and at least ``least_likelihood`` likely to be wrong itself: so the share adapts to the network,
    and a sure one has few doubtful voxels. A place is a connected piece of doubtful voxels within a box of
    ``across_mm`` a side, what can be looked at in one go, of at most ``most_ml`` and at most the share
    ``most_of_organ`` of its organ, but not cut below ``fewest_voxels``. Without a finding it needs a voxel of
    ``certain_enough`` risk (0 to 1; see ``evidence``) and a score of ``least_score``.

    That a border is unsure is a reason by itself only where it is ``unusual_border`` times as unsure as that of its
    organ is in this scan.

    A finding makes its voxels at least so likely to be wrong: an island, a hole and so on. The score of a place is the
    ml expected to be wrong in it, plus ``organ_share`` ml times the share of an ordinary organ that this is: ml alone
    would hide small organs for good. What an organ of unusual volume or position has in it counts ``unusual`` times.
    Places are ordered by their score over the square root of their ml.

    The values were chosen on phantoms whose seeds begin at ``TUNING_SEEDS`` of ``evaluation.review_evaluation`` and
    reported on others; ``dca evaluate-review`` repeats both. All orders that it compares have the same ``across_mm``.
    """

    across_mm: float = 40.0
    most_ml: float = 28.0
    most_of_organ: float = 0.2
    fewest_voxels: int = 32
    doubtful_share: float = 0.9
    least_likelihood: float = 0.05
    certain_enough: float = 0.35
    least_score: float = 0.5
    unusual_border: float = 1.3
    organ_share: float = 5.0
    unusual: float = 1.5
    island: float = 0.7
    hole: float = 0.7
    missing: float = 0.6
    cut: float = 0.5
    volume: float = 0.4
    position: float = 0.5


# Risk as ``Evidence`` has it, 0 to 1, and the share of voxels of that risk found wrong.
_AT_BORDERS = (
    (0.0, 0.008, 0.018, 0.03, 0.05, 0.08, 0.12, 0.17, 0.24, 0.35, 0.45, 0.57, 0.65, 1.0),
    (0.045, 0.075, 0.11, 0.15, 0.18, 0.215, 0.245, 0.28, 0.31, 0.35, 0.39, 0.42, 0.45, 0.6),
)
_ELSEWHERE = (
    (0.0, 0.001, 0.008, 0.02, 0.05, 0.12, 0.3, 1.0),
    (0.0, 0.001, 0.008, 0.035, 0.06, 0.1, 0.15, 0.6),
)


def error_probability_of(evidence: Evidence) -> Bytes:
    """For each voxel how likely its label is wrong, 0 to 255 for 0 to 1."""
    border = _beside_another(evidence.labels)
    if evidence.other is not None:
        border |= _beside_another(evidence.other)
    return np.where(
        border, _table(*_AT_BORDERS)[evidence.error_probability], _table(*_ELSEWHERE)[evidence.error_probability]
    )


def _table(error_probability: tuple[float, ...], wrong: tuple[float, ...]) -> Bytes:
    return np.rint(np.interp(np.arange(256) / 255, error_probability, wrong) * 255).astype(np.uint8)


def _beside_another(labels: Bytes) -> NDArray[np.bool_]:
    """Voxels that share a face with a voxel of another label."""
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        along, marked = np.moveaxis(labels, axis, 0), np.moveaxis(border, axis, 0)
        differ = along[1:] != along[:-1]
        marked[1:] |= differ
        marked[:-1] |= differ
    return border


Weights = NDArray[np.int64]
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
