"""The edges of a scan: its first and last slice, and the border of its field of view.

Scanners and programs fill the outside of a round field of view, or of a tilted or cropped volume, with one value. The
scan therefore ends not only at the faces of the array, but where this fill value begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A fill value is that of air or lower.
_FILLING_HU = -900
# The smallest cross-section at the edge of the scan, in mm2, that counts as an organ continuing beyond it.
_LEAST_AREA = 20.0

_Ends = list[tuple[tuple[NDArray[np.intp], ...], float]]


class ScanEdges:
    """The outermost voxels of a CT, seen from each of its six faces.

    ``ct`` is an array (z, y, x) in HU, ``spacing`` its spacing (x, y, z) in mm.
    """

    def __init__(self, ct: NDArray[np.generic], spacing: Sequence[float]) -> None:
        corners: NDArray[Any] = ct[np.ix_(*[(0, length - 1) for length in ct.shape])].ravel()
        fill_values = np.unique(corners[corners <= _FILLING_HU])
        self._ends: _Ends = []
        step = tuple(reversed(tuple(spacing)))
        for axis in range(3):
            area = step[0] * step[1] * step[2] / step[axis]
            for from_end in (False, True):
                self._ends.append((_first_inside(ct, fill_values, axis, from_end), area))

    def cut_off(self, labels: NDArray[np.integer]) -> frozenset[int]:
        """The labels in ``labels`` (z, y, x) that reach an edge of the scan with more than a few voxels."""
        reaching = set()
        for index, area in self._ends:
            edge = labels[index]
            counts = np.bincount(edge[edge > 0])
            reaching |= {int(label) for label in np.flatnonzero(counts * area >= _LEAST_AREA)}
        return frozenset(reaching)


def _first_inside(
    ct: NDArray[np.generic], fill_values: NDArray[np.generic], axis: int, from_end: bool
) -> tuple[NDArray[np.intp], ...]:
    """The indices (z, y, x) of the first voxel on each line along ``axis`` that is not in ``fill_values``."""
    lines = np.moveaxis(ct, axis, 0)
    if from_end:
        lines = lines[::-1]
    depth = np.zeros(lines.shape[1:], np.intp)
    outside = np.ones(lines.shape[1:], np.bool_)
    for plane in lines:
        outside &= np.isin(plane, fill_values)
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
