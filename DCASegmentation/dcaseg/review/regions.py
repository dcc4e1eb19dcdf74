"""Splitting of probably wrong voxels into connected regions that can be judged at a glance.

The network's own probabilities understate small error probabilities (it is confident about borders that are half a
voxel off) and overstate large ones. ``compute_error_probability`` corrects them with a table. The table was measured on
phantoms (the tuning cases of ``evaluation.review_evaluation``) with two models of 4 mm, which agree within about 0.03.
For other data the order of the findings holds, but the volumes in ml may be off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..inference.postprocessing import label_components
from ..types import Box
from .evidence import Bytes, Evidence

Mask = NDArray[np.bool_]
Pieces = NDArray[np.uint32]


def find_components(mask: Mask, corners: bool = True) -> tuple[Pieces, int]:
    """Return the connected components of ``mask`` (see ``postprocessing.label_components``) and their number."""
    pieces = sitk.GetArrayFromImage(label_components(mask, corners)).astype(np.uint32)
    return pieces, int(pieces.max(initial=0))


def iter_components(pieces: Pieces, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, Box, Mask]]:
    """Yield the number, bounding box and mask within the box of each wanted piece.

    ``pieces`` (z, y, x) holds numbers of pieces; ``wanted`` (numbers,) says for each number whether to yield it. Noise
    has thousands of pieces, so the voxels are sorted once instead of searching them for each piece.
    """
    where = np.flatnonzero(wanted.take(pieces))
    numbers = pieces.ravel()[where]
    # A stable sort keeps the voxels of a piece in order.
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


def compute_bounding_box(mask: Mask) -> Box | None:
    """Return the bounding box of ``mask`` (z, y, x), None for an empty mask."""
    sides = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if hit.size == 0:
            return None
        sides.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return sides[0], sides[1], sides[2]


def expand_box(box: Box, margin: int, shape: Sequence[int]) -> Box:
    """Return ``box``, ``margin`` voxels wider as far as an array of ``shape`` allows."""
    z, y, x = (
        slice(max(side.start - margin, 0), min(side.stop + margin, length))
        for side, length in zip(box, shape, strict=True)
    )
    return z, y, x


def dilate(mask: Mask) -> Mask:
    """Return ``mask`` dilated by one voxel (26 neighbors)."""
    result = mask
    for axis in range(3):
        moved = np.moveaxis(result, axis, 0)
        wider = moved.copy()
        wider[1:] |= moved[:-1]
        wider[:-1] |= moved[1:]
        result = np.moveaxis(wider, 0, axis)
    return result


@dataclass(frozen=True)
class ReviewOptions:
    """Parameters that turn error probabilities into ranked findings.

    Doubtful voxels: those with the highest error probability that together contain ``doubtful_share`` of all expected
    errors, each with a probability of at least ``min_probability_of_error``. So their number adapts to the network: a
    confident network has few of them.

    Regions: a finding is a connected region of doubtful voxels, within a box with sides of ``max_extent_mm`` (judged at
    a glance), of at most ``max_ml`` and at most the share ``max_organ_fraction`` of its organ, but not cut below
    ``min_voxels``. Without an anatomical finding in it, it needs a voxel with an error probability of
    ``certain_enough`` (that of ``evidence``) and a score of ``min_score``. An uncertain border is a reason only if it
    is ``unusual_border`` times as uncertain as usual for its organ in this scan.

    Anatomical findings: ``island``, ``hole``, ``missing``, ``cut``, ``volume`` and ``position`` are the minimum error
    probabilities of their voxels.

    Score: the ml expected to be wrong, plus ``organ_share`` ml times the share of an ordinary organ that these ml are;
    without this term small organs would never be reviewed. Organs of unusual volume or position count ``unusual``
    times. The order is that of the score divided by the square root of the volume.

    The values were tuned on phantoms with seeds from ``TUNING_SEEDS`` of ``evaluation.review_evaluation`` and evaluated
    on others; ``dca evaluate-review`` repeats both. All orders it compares use the same ``max_extent_mm``.
    """

    max_extent_mm: float = 40.0
    max_ml: float = 28.0
    max_organ_fraction: float = 0.2
    min_voxels: int = 32
    doubtful_share: float = 0.9
    min_probability_of_error: float = 0.05
    certain_enough: float = 0.35
    min_score: float = 0.5
    unusual_border: float = 1.3
    organ_share: float = 5.0
    unusual: float = 1.5
    island: float = 0.7
    hole: float = 0.7
    missing: float = 0.6
    cut: float = 0.5
    volume: float = 0.4
    position: float = 0.5


# Error probability of ``Evidence`` (0 to 1), and the measured share of wrong voxels with that probability.
_AT_BORDERS = (
    (0.0, 0.008, 0.018, 0.03, 0.05, 0.08, 0.12, 0.17, 0.24, 0.35, 0.45, 0.57, 0.65, 1.0),
    (0.045, 0.075, 0.11, 0.15, 0.18, 0.215, 0.245, 0.28, 0.31, 0.35, 0.39, 0.42, 0.45, 0.6),
)
_ELSEWHERE = (
    (0.0, 0.001, 0.008, 0.02, 0.05, 0.12, 0.3, 1.0),
    (0.0, 0.001, 0.008, 0.035, 0.06, 0.1, 0.15, 0.6),
)


def compute_error_probability(evidence: Evidence) -> Bytes:
    """Return the calibrated error probability of each voxel (z, y, x), uint8, 0 to 255 for 0 to 1."""
    at_borders, elsewhere = (
        _make_lookup_table(*pairs)[evidence.error_probability] for pairs in (_AT_BORDERS, _ELSEWHERE)
    )
    return np.where(find_borders(evidence), at_borders, elsewhere)


def find_borders(evidence: Evidence) -> NDArray[np.bool_]:
    """Return the mask (z, y, x) of voxels at a border between labels, in one of the two predictions."""
    border = _find_label_borders(evidence.labels)
    return border if evidence.other is None else border | _find_label_borders(evidence.other)


def _make_lookup_table(error_probability: tuple[float, ...], wrong: tuple[float, ...]) -> Bytes:
    return np.rint(np.interp(np.arange(256) / 255, error_probability, wrong) * 255).astype(np.uint8)


def _find_label_borders(labels: Bytes) -> NDArray[np.bool_]:
    """Return the mask of voxels that share a face with a voxel of another label."""
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        along, marked = np.moveaxis(labels, axis, 0), np.moveaxis(border, axis, 0)
        differ = along[1:] != along[:-1]
        marked[1:] |= differ
        marked[:-1] |= differ
    return border


Weights = NDArray[np.int64]
Limit = Callable[[Box, Mask], float]
"""Returns the maximum number of voxels of a new region, given its box and its mask in the box."""

# Boxes move in steps of about this many mm; on finer grids the weights of voxels are summed first.
_STEP_MM = 4.0


def split_into_regions(
    weights: Weights,
    spacing: Sequence[float],
    max_extent_mm: float,
    most: int,
    limit: Limit | None = None,
    kinds: Bytes | None = None,
) -> Bytes:
    """Split voxels with weight into at most ``most`` regions; returns their numbers (z, y, x) from 1, 0 elsewhere.

    ``weights`` (z, y, x) are 0 or more, and integers, so that no result depends on the order of a sum. ``spacing`` is
    (z, y, x) in mm. The algorithm is greedy: of all boxes with sides of ``max_extent_mm``, take the one with the
    largest remaining weight, and in it the heaviest connected component (26 neighbors) as the next region; repeat.
    ``kinds`` (z, y, x): a region contains voxels of one kind only, the one with the largest weight in the box. A
    region with more voxels than its ``limit`` is halved across its longest side until it fits, keeping the heavier
    half; the rest remains for later regions.
    """
    remaining = weights.copy()
    numbers = np.zeros(weights.shape, np.uint8)
    tile = tuple(max(round(_STEP_MM / step), 1) for step in spacing)
    side = tuple(max(int(max_extent_mm / (step * count) + 1e-6), 1) for step, count in zip(spacing, tile, strict=True))
    tiles = _tile_sums(remaining, tile)
    sums = _compute_box_sums(tiles, side)
    # Kept per plane, because searching all sums for each region would take a third of the review's time.
    largest = sums.max(axis=(1, 2))
    for number in range(1, most + 1):
        plane = int(largest.argmax())
        row, column = np.unravel_index(int(sums[plane].argmax()), sums.shape[1:])
        corner = (plane, int(row), int(column))
        if sums[corner] == 0:
            break
        box = _make_box(
            [start * count for start, count in zip(corner, tile, strict=True)],
            [(start + length) * count for start, length, count in zip(corner, side, tile, strict=True)],
            weights.shape,
        )
        inside = remaining[box] if kinds is None else _select_heaviest_kind(remaining[box], kinds[box])
        taken = _select_heaviest_component(inside)
        if limit is not None:
            taken = _cut_down(inside, taken, spacing, limit(box, taken))
        numbers[box][taken] = number
        remaining[box][taken] = 0
        changed_tiles = _find_tiles(box, taken, tile)
        voxels = _make_box(
            [part.start * count for part, count in zip(changed_tiles, tile, strict=True)],
            [part.stop * count for part, count in zip(changed_tiles, tile, strict=True)],
            weights.shape,
        )
        tiles[changed_tiles] = _tile_sums(remaining[voxels], tile)
        # Only the sums of boxes that contain one of these tiles have changed.
        first = [max(part.start - length + 1, 0) for part, length in zip(changed_tiles, side, strict=True)]
        near = _make_box(
            first, [part.stop + length - 1 for part, length in zip(changed_tiles, side, strict=True)], tiles.shape
        )
        changed = _compute_box_sums(tiles[near], side)
        within = _make_box(first, [start + length for start, length in zip(first, changed.shape, strict=True)])
        sums[within] = changed
        largest[within[0]] = sums[within[0]].max(axis=(1, 2))
    return numbers


def _find_tiles(box: Box, taken: Mask, tile: Sequence[int]) -> Box:
    """Return the box of tiles that contain voxels of ``taken``, a mask within ``box``."""
    part = compute_bounding_box(taken)
    assert part is not None
    z, y, x = (
        slice((outer.start + inner.start) // count, (outer.start + inner.stop - 1) // count + 1)
        for outer, inner, count in zip(box, part, tile, strict=True)
    )
    return z, y, x


def _select_heaviest_kind(weights: Weights, kinds: Bytes) -> Weights:
    """Return ``weights`` of the kind with the largest sum, 0 for the other kinds."""
    return np.where(kinds == int(_sum_weights(kinds, weights).argmax()), weights, 0)


def _sum_weights(numbers: NDArray[np.unsignedinteger], weights: Weights) -> NDArray[np.float64]:
    """Return the sum of ``weights`` for each of ``numbers``. It is exact: weights are integers, far below 2^53."""
    return np.asarray(np.bincount(numbers.ravel(), weights.ravel()), np.float64)


def _cut_down(weights: Weights, piece: Mask, spacing: Sequence[float], most: float) -> Mask:
    """Return the heaviest connected part of ``piece`` with at most ``most`` voxels, and at least one."""
    while np.count_nonzero(piece) > max(most, 1):
        other_axes = [tuple(other for other in range(3) if other != axis) for axis in range(3)]
        ends = [np.flatnonzero(piece.any(axis=axes)) for axes in other_axes]
        axis = int(np.argmax([(end[-1] - end[0] + 1) * step for end, step in zip(ends, spacing, strict=True)]))
        if ends[axis][0] == ends[axis][-1]:
            axis = int(np.argmax([end[-1] - end[0] for end in ends]))
        first, last = int(ends[axis][0]), int(ends[axis][-1])
        within = np.where(piece, weights, 0)
        along = within.sum(axis=other_axes[axis])
        middle = (first + last + 1) // 2
        lower = along[:middle].sum() >= along[middle:].sum()
        index: list[slice] = [slice(None)] * 3
        index[axis] = slice(middle, None) if lower else slice(None, middle)
        within[tuple(index)] = 0
        piece = _select_heaviest_component(within)
    return piece


def _select_heaviest_component(weights: Weights) -> NDArray[np.bool_]:
    pieces, _ = find_components(weights > 0)
    return np.asarray(pieces == int(_sum_weights(pieces, weights)[1:].argmax()) + 1)


def _tile_sums(weights: Weights, tile: Sequence[int]) -> Weights:
    """Sum ``weights`` over tiles of ``tile`` (z, y, x) voxels; the last ones may be smaller."""
    for axis, count in enumerate(tile):
        if count > 1:
            weights = np.add.reduceat(weights, range(0, weights.shape[axis], count), axis=axis)
    return weights.copy()


def _compute_box_sums(tiles: Weights, side: Sequence[int]) -> Weights:
    """Return the sum of each box of ``side`` (z, y, x) tiles, at the index of its first tile.

    Boxes lie within the grid; along an axis shorter than the box there is one box.
    """
    for axis, wanted in enumerate(side):
        along = np.moveaxis(tiles, axis, 0)
        length = min(wanted, len(along))
        sums = np.zeros((len(along) + 1, *along.shape[1:]), np.int64)
        np.cumsum(along, axis=0, out=sums[1:])
        tiles = np.moveaxis(sums[length:] - sums[:-length], 0, axis)
    return tiles


def _make_box(first: Sequence[int], stop: Sequence[int], shape: Sequence[int] | None = None) -> Box:
    """Return slices from ``first`` to ``stop``, clipped to ``shape``."""
    ends = stop if shape is None else [min(end, length) for end, length in zip(stop, shape, strict=True)]
    z, y, x = (slice(begin, end) for begin, end in zip(first, ends, strict=True))
    return z, y, x
