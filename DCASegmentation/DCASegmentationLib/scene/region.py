"""A box of voxels of a CT: what a region of interest leaves to be computed, and the way back to the whole grid."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from DCASegmentationLib.errors import UserError


@dataclass(frozen=True)
class Region:
    """Indices ``first`` to below ``last`` of an array (z, y, x)."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]

    @classmethod
    def whole(cls, size: tuple[int, ...]) -> Region:
        """All voxels of an array of ``size`` (z, y, x)."""
        return cls((0, 0, 0), (size[0], size[1], size[2]))

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in zip(self.first, self.last, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in zip(self.first, self.last, strict=True))

    @property
    def first_index_xyz(self) -> tuple[int, int, int]:
        return self.first[2], self.first[1], self.first[0]

    def fits(self, size: tuple[int, ...]) -> bool:
        """Whether the box lies inside an array of ``size`` (z, y, x)."""
        return all(stop <= length for stop, length in zip(self.last, size, strict=True))


def region_of_interest(roi_node: Any, index_to_world: np.ndarray, size: tuple[int, ...]) -> Region:
    """The smallest box of voxels that holds a vtkMRMLMarkupsROINode, however the two lie to each other.

    ``index_to_world`` (4, 4) leads from voxel indices (i, j, k) to world RAS (mm); ``size`` is (z, y, x).
    Raises UserError where the ROI has no extent yet, or does not touch the CT.
    """
    half = np.array(roi_node.GetSize()) / 2
    if roi_node.GetNumberOfControlPoints() == 0 or half.min() <= 0:
        raise UserError(f"The region {roi_node.GetName()} is empty.", "Place the region on the CT, or choose none.")
    to_world = np.array(
        [[roi_node.GetObjectToWorldMatrix().GetElement(row, column) for column in range(4)] for row in range(4)]
    )
    corners = np.array([[*(half * signs), 1.0] for signs in product((-1.0, 1.0), repeat=3)])
    indices = (np.linalg.inv(index_to_world) @ to_world @ corners.T)[:3]
    # Voxels reach half an index to both sides of their center.
    first = np.maximum(np.floor(indices.min(axis=1) + 0.5), 0).astype(int)[::-1]
    last = np.minimum(np.ceil(indices.max(axis=1) + 0.5), size[::-1]).astype(int)[::-1]
    if (last <= first).any():
        raise UserError(f"The region {roi_node.GetName()} lies outside of the CT.", "Move it onto the CT.")
    return Region((int(first[0]), int(first[1]), int(first[2])), (int(last[0]), int(last[1]), int(last[2])))


def in_whole_grid(labels: np.ndarray, region: Region, size: tuple[int, ...]) -> np.ndarray:
    """``labels`` of ``region`` at their place in an array of ``size`` (z, y, x), background around them."""
    if labels.shape == tuple(size):
        return labels
    whole = np.zeros(size, labels.dtype)
    whole[region.slices] = labels
    return whole
