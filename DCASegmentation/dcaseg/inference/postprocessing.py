"""Postprocessing of labels: connected components, found slab by slab, and removal of islands.

Each organ of the vocabularies is a single piece. A network that sees one window at a time does not know that, and
sometimes finds a few voxels of an organ elsewhere. The paper and the methods it compares with leave these voxels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .measurements import compute_bounding_boxes

Numbers = NDArray[np.uint32]

_FEW_VOXELS = 500_000


def label_components(mask: NDArray[np.bool_], corners: bool = True) -> sitk.Image:
    """Return the connected components of ``mask`` (z, y, x), numbered from 1 in the order of their first voxel.

    ``corners`` connects voxels that share a corner (26 neighbors); otherwise only faces connect (6 neighbors).
    """
    components = sitk.ConnectedComponentImageFilter()
    components.SetFullyConnected(corners)
    if mask.size < _FEW_VOXELS:
        # Waking the other threads takes longer than the work, and tens of milliseconds on a busy computer.
        components.SetNumberOfWorkUnits(1)
    return components.Execute(sitk.GetImageFromArray(mask.view(np.uint8)))


class JoinedPieces:
    """Sizes of components that extend over several slabs.

    For each slab, in order: call ``count`` with its voxels, then ``close``. Afterwards ``find_small_pieces`` says for
    each piece of each slab whether the whole component it belongs to is small.
    """

    def __init__(self) -> None:
        # By number, counted on from slab to slab; 0 is the background.
        self._sizes = np.zeros(1, np.int64)
        self._ends = [1]
        self._counted = np.zeros(1, np.int64)
        self._pairs: list[NDArray[np.int64]] = []
        self._last: NDArray[np.int64] | None = None

    def count(self, numbers: Numbers) -> None:
        """Count voxels of the current slab; ``numbers`` (n,) are the numbers of their pieces, 1 or above."""
        sizes = np.bincount(numbers, minlength=len(self._counted))
        sizes[: len(self._counted)] += self._counted
        self._counted = sizes

    def close(self, pieces: sitk.Image) -> None:
        """Finish the current slab; ``pieces`` are its components as ``label_components`` returns them."""
        numbers = sitk.GetArrayViewFromImage(pieces)
        first, last = (self._offset_numbers(numbers[z]) for z in (0, -1))
        if self._last is not None:
            self._pairs.append(_find_touching_pairs(self._last, first))
        self._last = last
        self._sizes = np.concatenate([self._sizes, self._counted[1:]])
        self._ends.append(len(self._sizes))
        self._counted = np.zeros(1, np.int64)

    def find_small_pieces(self, share: float) -> list[NDArray[np.bool_]]:
        """Return for each slab an array that says, by number of a piece, whether its component is small.

        Small means fewer voxels than ``share`` times those of the largest component. The entry of number 0 is False.
        """
        root = _find_roots(len(self._sizes), np.concatenate([*self._pairs, np.zeros((0, 2), np.int64)]))
        whole = np.bincount(root, weights=self._sizes, minlength=len(root))[root]
        small = whole < share * whole.max()
        small[0] = False
        return [
            np.concatenate([small[:1], small[start:stop]])
            for start, stop in zip(self._ends[:-1], self._ends[1:], strict=True)
        ]

    def _offset_numbers(self, plane: Numbers) -> NDArray[np.int64]:
        return np.where(plane > 0, plane.astype(np.int64) + (len(self._sizes) - 1), 0)


def _find_touching_pairs(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (n, 2) of the numbers of pieces in two adjacent planes that touch, over edges and corners too."""
    height, width = above.shape
    padded = np.pad(below, 1)
    pairs = []
    for y in range(3):
        for x in range(3):
            other = padded[y : y + height, x : x + width]
            both = (above > 0) & (other > 0)
            pairs.append(np.unique(np.stack([above[both], other[both]], axis=1), axis=0))
    return np.unique(np.concatenate(pairs), axis=0)


def _find_roots(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of ``count`` numbers, the lowest number that ``pairs`` connect it with."""
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
"""A piece below this share of the organ's largest piece is an island. Organs found in two halves keep both."""

COMPACT_SHARE = 0.3
"""The same for organs that are compact (see ``organs.Organ``). A network that sees one window at a time takes muscle or
bowel far away for a part of them; measured in Resources/Docs/measurements/models.md."""

SLAB_VOXELS = 32_000_000
"""Voxels of a slab, at five bytes each: more than the box of an organ holds, and less than that of noise in a long
scan."""

_Scalar = TypeVar("_Scalar", bound=np.generic)

# Voxels per block of counting and erasing: numpy's intermediate arrays are several times as large.
_BLOCK = 4_000_000


def remove_islands(
    labels: NDArray[np.uint8],
    compact: Collection[int] = (),
    share: float = SMALL_SHARE,
    compact_share: float = COMPACT_SHARE,
    slab_voxels: int = SLAB_VOXELS,
) -> dict[int, int]:
    """Set the islands in ``labels`` (z, y, x) to background, in place. Returns the number of voxels removed by label.

    An island is a connected component of a label (26 neighbors) with less than ``share`` of the voxels of the label's
    largest component; of the labels ``compact``, with less than ``compact_share``. Boxes of more than ``slab_voxels``
    voxels are processed in slabs; the result is the same.
    """
    removed = {}
    for label, box in compute_bounding_boxes(labels).items():
        part = labels[box]
        planes = max(1, slab_voxels // part[0].size)
        slabs = [part[z : z + planes] for z in range(0, len(part), planes)]
        count = _remove(label, slabs, compact_share if label in compact else share)
        if count:
            removed[label] = count
    return removed


def _remove(label: int, slabs: list[NDArray[np.uint8]], share: float) -> int:
    joined = JoinedPieces()
    for slab in slabs:
        pieces = label_components(slab == label)
        for block in _iter_blocks(sitk.GetArrayViewFromImage(pieces)):
            joined.count(block[block > 0])
        joined.close(pieces)
    removed = 0
    for slab, small in zip(slabs, joined.find_small_pieces(share), strict=True):
        if small.any():
            if len(slabs) > 1:
                # Free the pieces of the previous slab first.
                del pieces
                pieces = label_components(slab == label)
            removed += _erase(slab, sitk.GetArrayViewFromImage(pieces), small)
    return removed


def _erase(slab: NDArray[np.uint8], numbers: NDArray[np.uint32], small: NDArray[np.bool_]) -> int:
    removed = 0
    for voxels, of_piece in zip(_iter_blocks(slab), _iter_blocks(numbers), strict=True):
        islands = small[of_piece]
        voxels[islands] = 0
        removed += int(islands.sum())
    return removed


def _iter_blocks(volume: NDArray[_Scalar]) -> Iterator[NDArray[_Scalar]]:
    planes = max(1, _BLOCK // volume[0].size)
    for z in range(0, len(volume), planes):
        yield volume[z : z + planes]
