"""Postprocessing of labels: connected pieces found slab by slab, and those too small to be an organ removed.

Every organ of the vocabularies is one piece of the body. A network that looks at one window at a time knows nothing
of that, and now and then finds a few voxels of an organ elsewhere. The paper's family leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .measurements import boxes_of

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


SMALL_SHARE = 0.1
"""Share of an organ's largest piece below which another piece is an island: organs that the network found in two
halves stay whole."""

AT_ONCE = 32_000_000
"""Voxels whose pieces are told apart at once, at five bytes each: more than the box of an organ holds, and less than
that of noise in a long scan."""

_Scalar = TypeVar("_Scalar", bound=np.generic)

# Voxels that are counted or erased at once: what numpy makes of them is several times as large.
_BLOCK = 4_000_000


def remove_islands(labels: NDArray[np.uint8], share: float = SMALL_SHARE, at_once: int = AT_ONCE) -> dict[int, int]:
    """Set the islands in ``labels`` (z, y, x) to background, in place; gives voxels removed by label.

    An island is a piece of a label, connected over corners too, with less than ``share`` of the voxels of the label's
    largest piece. What is larger than ``at_once`` voxels is taken in slabs, each of them twice; the outcome is the
    same.
    """
    removed = {}
    for label, box in boxes_of(labels).items():
        part = labels[box]
        planes = max(1, at_once // part[0].size)
        count = _remove(label, [part[z : z + planes] for z in range(0, len(part), planes)], share)
        if count:
            removed[label] = count
    return removed


def _remove(label: int, slabs: list[NDArray[np.uint8]], share: float) -> int:
    joined = JoinedPieces()
    for slab in slabs:
        pieces = numbered(slab == label)
        for block in _blocks(sitk.GetArrayViewFromImage(pieces)):
            joined.count(block[block > 0])
        joined.close(pieces)
    removed = 0
    for slab, small in zip(slabs, joined.smaller_than(share), strict=True):
        if small.any():
            if len(slabs) > 1:
                # Those of the slab before go first.
                del pieces
                pieces = numbered(slab == label)
            removed += _erase(slab, sitk.GetArrayViewFromImage(pieces), small)
    return removed


def _erase(slab: NDArray[np.uint8], numbers: NDArray[np.uint32], small: NDArray[np.bool_]) -> int:
    removed = 0
    for voxels, of_piece in zip(_blocks(slab), _blocks(numbers), strict=True):
        islands = small[of_piece]
        voxels[islands] = 0
        removed += int(islands.sum())
    return removed


def _blocks(volume: NDArray[_Scalar]) -> Iterator[NDArray[_Scalar]]:
    planes = max(1, _BLOCK // volume[0].size)
    for z in range(0, len(volume), planes):
        yield volume[z : z + planes]
