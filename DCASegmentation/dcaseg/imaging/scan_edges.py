"""Where a scan ends: its first and last slice, and the edge of its field of view.

Scanners and programs fill what lies outside of a round field of view, or of a tilted or cropped volume, with one
value. So the scan does not end at the array's faces alone, but where, seen from a face, that value ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What fills the outside is air or below.
_FILLING_HU = -900
# A part smaller than this cross-section at the scan's end is no organ that goes on beyond it, mm2.
_LEAST_AREA = 20.0

_Ends = list[tuple[tuple[NDArray[np.intp], ...], float]]


class ScanEdges:
    """The voxels at which a CT ends, seen from each of its six faces.

    ``ct`` is an array (z, y, x) in HU, ``spacing`` its voxels' (x, y, z) in mm.
    """

    def __init__(self, ct: NDArray[np.generic], spacing: Sequence[float]) -> None:
        corners: NDArray[Any] = ct[np.ix_(*[(0, length - 1) for length in ct.shape])].ravel()
        filling = np.unique(corners[corners <= _FILLING_HU])
        self._ends: _Ends = []
        step = tuple(reversed(tuple(spacing)))
        for axis in range(3):
            area = step[0] * step[1] * step[2] / step[axis]
            for from_end in (False, True):
                self._ends.append((_first_inside(ct, filling, axis, from_end), area))

    def cut_off(self, labels: NDArray[np.integer]) -> frozenset[int]:
        """The labels in ``labels`` (z, y, x) that reach an end of the scan with more than a few voxels."""
        found = set()
        for index, area in self._ends:
            there = labels[index]
            counts = np.bincount(there[there > 0])
            found |= {int(label) for label in np.flatnonzero(counts * area >= _LEAST_AREA)}
        return frozenset(found)


def _first_inside(
    ct: NDArray[np.generic], filling: NDArray[np.generic], axis: int, from_end: bool
) -> tuple[NDArray[np.intp], ...]:
    """Indices (z, y, x) of the first voxel of each line along ``axis`` that is not ``filling``, seen from one face."""
    lines = np.moveaxis(ct, axis, 0)
    if from_end:
        lines = lines[::-1]
    depth = np.zeros(lines.shape[1:], np.intp)
    outside = np.ones(lines.shape[1:], np.bool_)
    for plane in lines:
        outside &= np.isin(plane, filling)
        if not outside.any():
            break
        depth += outside
    across = np.nonzero(depth < len(lines))
    along = depth[across]
    if from_end:
        along = len(lines) - 1 - along
    index = list(across)
    index.insert(axis, along)
    return tuple(index)
