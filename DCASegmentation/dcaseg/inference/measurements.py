"""Volume, mean HU and bounding box of each organ, and whether the scan cuts it off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.scan_edges import ScanEdges
from ..organs import Organ, Vocabulary
from ..types import Box

# Labels that one pass over the voxels finds: one bit of a 64-bit word each.
_LABELS_PER_PASS = 64


def compute_bounding_boxes(labels: NDArray[np.uint8]) -> dict[int, Box]:
    """Return the bounding box (z, y, x) of each label in ``labels`` (z, y, x), background excluded.

    ITK's LabelShapeStatistics would do it too, but it holds the runs of all labels at once, which for a noisy label
    map is many times the size of the map.
    """
    boxes = {}
    for first in range(1, int(labels.max(initial=0)) + 1, _LABELS_PER_PASS):
        subset = range(first, min(first + _LABELS_PER_PASS, 256))
        present = [_unpack_bits(words, len(subset)) for words in _project_labels(labels, subset)]
        for index, label in enumerate(subset):
            if present[0][index].any():
                depth, height, width = (_find_extent(each[index]) for each in present)
                boxes[label] = depth, height, width
    return boxes


def _project_labels(labels: NDArray[np.uint8], subset: range) -> tuple[NDArray[np.uint64], ...]:
    """For each index along z, y and x, the labels of ``subset`` that occur there, one bit for each label."""
    in_z, in_y, in_x = (np.zeros(length, np.uint64) for length in labels.shape)
    bits = np.zeros(256, np.uint64)
    bits[subset.start : subset.stop] = np.uint64(1) << np.arange(len(subset), dtype=np.uint64)
    for z, plane in enumerate(labels):
        if plane.any():
            words = bits.take(plane)
            rows = np.bitwise_or.reduce(words, axis=1)
            in_z[z] = np.bitwise_or.reduce(rows)
            in_y |= rows
            in_x |= np.bitwise_or.reduce(words, axis=0)
    return in_z, in_y, in_x


def _unpack_bits(words: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    """Array (count, words) that says whether bit i is set in word j, for the first ``count`` bits."""
    return (words >> np.arange(count, dtype=np.uint64)[:, None] & np.uint64(1)) > 0


def _find_extent(present: NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(present)
    return slice(int(where[0]), int(where[-1]) + 1)


@dataclass(frozen=True)
class OrganMeasurement:
    """One organ in a label map.

    ``ml`` is its volume; ``mean_hu`` is None if it has no voxels. ``cut_off`` means that the organ reaches the edge of
    the scan, so its volume is a lower bound.
    """

    organ: Organ
    voxels: int
    ml: float
    mean_hu: float | None
    cut_off: bool = False

    @property
    def found(self) -> bool:
        """Whether the organ has more than a few stray voxels."""
        return self.voxels > 0 and not self.organ.is_stray(self.ml)

    @property
    def note(self) -> str:
        """How the volume compares with an adult's usual range; empty if it lies within the range."""
        return self.organ.note(self.voxels, self.ml, self.cut_off)


def measure(
    labels: NDArray[np.uint8],
    ct: NDArray[np.generic],
    ml_per_voxel: float,
    vocabulary: Vocabulary,
    kept: Collection[int] | None = None,
    spacing: Sequence[float] | None = None,
) -> tuple[OrganMeasurement, ...]:
    """Measure the organs of ``vocabulary``.

    ``labels`` and ``ct`` (HU) are arrays of the same shape (z, y, x). ``ml_per_voxel`` is the volume of a voxel.
    ``kept`` are the labels of the organs that were segmented, None for all; other organs are not in the result.
    ``spacing`` of the voxels is (x, y, z) in mm; None means cubic voxels.
    """
    voxels = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    hu_sums = np.zeros(len(vocabulary) + 1)
    # Slice by slice: bincount converts its input to 64-bit numbers.
    for label_slice, ct_slice in zip(labels, ct, strict=True):
        # Organs cover a small part of a slice.
        where = np.flatnonzero(label_slice != 0)
        flat = label_slice.ravel()[where]
        voxels += np.bincount(flat, minlength=len(voxels))
        hu_sums += np.bincount(flat, weights=ct_slice.ravel()[where], minlength=len(voxels))
    cut_off = ScanEdges(ct, spacing or [(1000 * ml_per_voxel) ** (1 / 3)] * 3).find_truncated_labels(labels)
    measurements = []
    for organ in vocabulary:
        if kept is not None and organ.label not in kept:
            continue
        count = int(voxels[organ.label])
        ml = float(count * ml_per_voxel)
        mean = float(hu_sums[organ.label] / count) if count else None
        is_cut = organ.label in cut_off and not organ.is_stray(ml)
        measurements.append(OrganMeasurement(organ, count, ml, mean, is_cut))
    return tuple(measurements)
