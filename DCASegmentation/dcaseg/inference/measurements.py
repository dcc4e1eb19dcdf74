"""Volume, mean HU and bounding box of each organ, and whether the scan ends in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.scan_edges import ScanEdges
from ..organs import Organ, Vocabulary

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


@dataclass(frozen=True)
class OrganMeasurement:
    """One organ in a label map; ``mean_hu`` is None where it has no voxel. ``cut_off`` says that the organ reaches an
    end of the scan, so that its volume is a lower bound."""

    organ: Organ
    voxels: int
    ml: float
    mean_hu: float | None
    cut_off: bool = False

    @property
    def found(self) -> bool:
        """Whether there is more of it than a few stray voxels."""
        return self.voxels > 0 and not self.organ.is_stray(self.ml)

    @property
    def note(self) -> str:
        """How the volume compares with ordinary adults', empty if it is within their range."""
        return self.organ.note(self.voxels, self.ml, self.cut_off)


def measure(
    labels: NDArray[np.uint8],
    ct: NDArray[np.generic],
    ml_per_voxel: float,
    vocabulary: Vocabulary,
    kept: Collection[int] | None = None,
    spacing: Sequence[float] | None = None,
) -> tuple[OrganMeasurement, ...]:
    """Measure the organs of ``vocabulary`` that are in ``kept``, None for all: the others were not looked for.

    ``labels`` and ``ct`` (HU) are arrays of one shape (z, y, x), ``spacing`` is that of their voxels (x, y, z) in mm;
    left out, they count as cubes.
    """
    voxels = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    hu_sums = np.zeros(len(vocabulary) + 1)
    # Slice by slice: bincount turns its input into 64-bit numbers.
    for label_slice, ct_slice in zip(labels, ct, strict=True):
        # Organs are a small part of a slice.
        where = np.flatnonzero(label_slice != 0)
        flat = label_slice.ravel()[where]
        voxels += np.bincount(flat, minlength=len(voxels))
        hu_sums += np.bincount(flat, weights=ct_slice.ravel()[where], minlength=len(voxels))
    cut_off = ScanEdges(ct, spacing or [(1000 * ml_per_voxel) ** (1 / 3)] * 3).cut_off(labels)
    found = []
    for organ in vocabulary:
        if kept is not None and organ.label not in kept:
            continue
        count = int(voxels[organ.label])
        ml = float(count * ml_per_voxel)
        mean = float(hu_sums[organ.label] / count) if count else None
        is_cut = organ.label in cut_off and not organ.is_stray(ml)
        found.append(OrganMeasurement(organ, count, ml, mean, is_cut))
    return tuple(found)
