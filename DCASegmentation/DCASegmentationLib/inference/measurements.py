"""Volume and mean HU of each organ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..organs import Organ, Vocabulary


@dataclass(frozen=True)
class OrganMeasurement:
    """One organ in a label map; ``mean_hu`` is None where it was not found."""

    organ: Organ
    voxels: int
    ml: float
    mean_hu: float | None

    @property
    def note(self) -> str:
        """How the volume compares with ordinary adults', empty if it is within their range."""
        low, high = self.organ.volume_ml
        if self.voxels == 0:
            return "not found"
        if self.ml < low:
            return f"below the usual {low:g} to {high:g} ml"
        if self.ml > high:
            return f"above the usual {low:g} to {high:g} ml"
        return ""


def measure(
    labels: NDArray[np.uint8], ct: NDArray[np.generic], ml_per_voxel: float, vocabulary: Vocabulary
) -> tuple[OrganMeasurement, ...]:
    """Measure every organ of ``vocabulary``; ``labels`` and ``ct`` (HU) are arrays of one shape (z, y, x)."""
    voxels = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    hu_sums = np.zeros(len(vocabulary) + 1)
    # Slice by slice: bincount turns its input into 64-bit numbers.
    for label_slice, ct_slice in zip(labels, ct, strict=True):
        # Organs are a small part of a slice.
        where = np.flatnonzero(label_slice != 0)
        flat = label_slice.ravel()[where]
        voxels += np.bincount(flat, minlength=len(voxels))
        hu_sums += np.bincount(flat, weights=ct_slice.ravel()[where], minlength=len(voxels))
    return tuple(
        OrganMeasurement(
            organ,
            int(voxels[organ.label]),
            float(voxels[organ.label] * ml_per_voxel),
            float(hu_sums[organ.label] / voxels[organ.label]) if voxels[organ.label] else None,
        )
        for organ in vocabulary
    )
