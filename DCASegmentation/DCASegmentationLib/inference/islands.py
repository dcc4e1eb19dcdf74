"""Pieces of an organ far too small to be it, taken out of a label map.

Every organ of the vocabularies is one piece of the body. A network that looks at one window at a time knows nothing
of that, and now and then finds a few voxels of an organ elsewhere. The paper's family leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .label_boxes import boxes_of
from .pieces import JoinedPieces, numbered

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
