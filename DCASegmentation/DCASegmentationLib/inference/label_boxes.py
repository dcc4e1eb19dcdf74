"""The box around the voxels of each label of a label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]

# Labels in one pass over the voxels: each has a bit of a number.
_AT_ONCE = 64


def boxes_of(labels: NDArray[np.uint8]) -> dict[int, Box]:
    """The box (z, y, x) around each label in ``labels`` (z, y, x), the background left out, by label.

    Not by ITK's LabelShapeStatistics: it holds the runs of all labels at once, many times a noisy label map.
    """
    boxes = {}
    for first in range(1, int(labels.max(initial=0)) + 1, _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, 256))
        held = [_held(words, len(some)) for words in _seen_along(labels, some)]
        for index, label in enumerate(some):
            if held[0][index].any():
                depth, height, width = (_ends(each[index]) for each in held)
                boxes[label] = depth, height, width
    return boxes


def _seen_along(labels: NDArray[np.uint8], some: range) -> tuple[NDArray[np.uint64], ...]:
    """For each index along z, y and x which of ``some`` labels are there; a bit for each."""
    in_z, in_y, in_x = (np.zeros(length, np.uint64) for length in labels.shape)
    bits = np.zeros(256, np.uint64)
    bits[some.start : some.stop] = np.uint64(1) << np.arange(len(some), dtype=np.uint64)
    for z, plane in enumerate(labels):
        if plane.any():
            words = bits.take(plane)
            rows = np.bitwise_or.reduce(words, axis=1)
            in_z[z] = np.bitwise_or.reduce(rows)
            in_y |= rows
            in_x |= np.bitwise_or.reduce(words, axis=0)
    return in_z, in_y, in_x


def _held(words: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    """Whether bit i is set in word j, (i, j), for the first ``count`` bits."""
    return (words >> np.arange(count, dtype=np.uint64)[:, None] & np.uint64(1)) > 0


def _ends(held: NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(held)
    return slice(int(where[0]), int(where[-1]) + 1)
