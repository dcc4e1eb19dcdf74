"""Connected pieces of masks, and boxes around them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..label_boxes import Box
from ..pieces import numbered

Mask = NDArray[np.bool_]
Pieces = NDArray[np.uint32]


def pieces_of_mask(mask: Mask, corners: bool = True) -> tuple[Pieces, int]:
    """The pieces of ``mask`` as ``inference.pieces.numbered`` counts them, and how many there are."""
    pieces = sitk.GetArrayFromImage(numbered(mask, corners)).astype(np.uint32)
    return pieces, int(pieces.max(initial=0))


def each_piece(pieces: Pieces, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, Box, Mask]]:
    """Number, box and mask within the box of each piece that is ``wanted``, an array with a place for each number.

    In noise there are thousands of pieces: none is looked for among all voxels.
    """
    where = np.flatnonzero(wanted.take(pieces))
    numbers = pieces.ravel()[where]
    # Stable, so that the voxels of a piece stay in order.
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


def box_of(mask: Mask, margin: int = 0) -> Box | None:
    """The box around ``mask``, ``margin`` voxels wider where the array allows; None for an empty mask."""
    found = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if hit.size == 0:
            return None
        found.append(slice(max(int(hit[0]) - margin, 0), min(int(hit[-1]) + 1 + margin, mask.shape[axis])))
    return found[0], found[1], found[2]


def grown(mask: Mask) -> Mask:
    """``mask`` and the voxels next to it, corners included."""
    result = mask
    for axis in range(3):
        moved = np.moveaxis(result, axis, 0)
        wider = moved.copy()
        wider[1:] |= moved[:-1]
        wider[:-1] |= moved[1:]
        result = np.moveaxis(wider, 0, axis)
    return result
