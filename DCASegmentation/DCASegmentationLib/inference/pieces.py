"""The connected pieces of one label in a volume that is taken slab by slab, so that memory does not grow with it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Numbers = NDArray[np.uint32]


def numbered(mask: NDArray[np.bool_], corners: bool = True) -> sitk.Image:
    """The pieces of ``mask`` (z, y, x) numbered from 1, in the order of their first voxel; 0 elsewhere.

    With ``corners`` voxels that share no more than a corner are connected (26 neighbors), else faces count (6).
    """
    return sitk.ConnectedComponent(sitk.GetImageFromArray(mask.view(np.uint8)), corners)


class JoinedPieces:
    """Sizes of pieces that go on from slab to slab.

    For each slab, in order: ``count`` its voxels, then ``close`` it. Then ``smaller_than`` tells of each piece of each
    slab whether all that it is connected with is small.
    """

    def __init__(self) -> None:
        # By number, which goes on from slab to slab; 0 is no piece.
        self._sizes = np.zeros(1, np.int64)
        self._ends = [1]
        self._counted = np.zeros(1, np.int64)
        self._pairs: list[NDArray[np.int64]] = []
        self._last: NDArray[np.int64] | None = None

    def count(self, numbers: Numbers) -> None:
        """Add ``numbers`` (n,), of voxels of the slab that is open, each 1 or above."""
        sizes = np.bincount(numbers, minlength=len(self._counted))
        sizes[: len(self._counted)] += self._counted
        self._counted = sizes

    def close(self, pieces: sitk.Image) -> None:
        """The open slab is counted; ``pieces`` are its, as ``numbered`` gives them."""
        numbers = sitk.GetArrayViewFromImage(pieces)
        first, last = (self._numbers_of(numbers[z]) for z in (0, -1))
        if self._last is not None:
            self._pairs.append(_touching(self._last, first))
        self._last = last
        self._sizes = np.concatenate([self._sizes, self._counted[1:]])
        self._ends.append(len(self._sizes))
        self._counted = np.zeros(1, np.int64)

    def smaller_than(self, share: float) -> list[NDArray[np.bool_]]:
        """For each slab, by the number of a piece in it: whether it and what it is connected with are less than
        ``share`` of the largest. False for 0."""
        root = _roots(len(self._sizes), np.concatenate([*self._pairs, np.zeros((0, 2), np.int64)]))
        whole = np.bincount(root, weights=self._sizes, minlength=len(root))[root]
        small = whole < share * whole.max()
        small[0] = False
        return [
            np.concatenate([small[:1], small[start:stop]])
            for start, stop in zip(self._ends[:-1], self._ends[1:], strict=True)
        ]

    def _numbers_of(self, plane: Numbers) -> NDArray[np.int64]:
        return np.where(plane > 0, plane.astype(np.int64) + (len(self._sizes) - 1), 0)


def _touching(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (n, 2) of numbers in two planes that lie on each other, over edges and corners too."""
    height, width = above.shape
    padded = np.pad(below, 1)
    pairs = []
    for y in range(3):
        for x in range(3):
            other = padded[y : y + height, x : x + width]
            both = (above > 0) & (other > 0)
            pairs.append(np.unique(np.stack([above[both], other[both]], axis=1), axis=0))
    return np.unique(np.concatenate(pairs), axis=0)


def _roots(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of ``count`` numbers the lowest that ``pairs`` connect it with."""
    root = np.arange(count)
    while True:
        ends = root[pairs]
        low, high = ends.min(axis=1), ends.max(axis=1)
        if np.array_equal(low, high):
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(root, deeper := root[root]):
            root = deeper
