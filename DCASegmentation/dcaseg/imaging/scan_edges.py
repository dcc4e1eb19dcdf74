"""The edges of a scan: its first and last slice, and the border of its field of view.

Scanners and programs fill the outside of a round field of view, or of a tilted or cropped volume, with one value. The
scan therefore ends not only at the faces of the array, but where this fill value begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .intensity import compact_ct, compute_value_range

# A fill value is that of air or lower, after ``fill_outside_with_air``.
_FILLING_HU = -900
# Values that fill the outside although they are not air: 0, the default of many resampling programs, and values that
# no tissue has. Noise does not make a block of this many voxels at a corner equal.
_ABOVE_TISSUE_HU = 1500
_BLOCK = 3
_FAT_HU = -100
_AIR_HU = -1024
# Lower values are no HU, and some are too large for calculations. Programs fill the outside with them.
_MIN_HU = -32_768
# The smallest cross-section at the edge of the scan, in mm2, that counts as an organ continuing beyond it.
_MIN_AREA = 20.0


def fill_outside_with_air(ct: sitk.Image, notes: list[str]) -> sitk.Image:
    """``ct`` (HU, int16 or float32) with air where one value that is not air fills the outside of the field of view.

    Otherwise the network, and the checks that look for the body, would take it for tissue. Only areas that reach a
    corner of the volume are changed, and only if the image has values of fat and air, as HU do. ``notes`` receives a
    note on it.
    """
    array = sitk.GetArrayViewFromImage(ct)
    seeds: dict[float, list[tuple[int, ...]]] = {}
    for ends in np.ndindex(2, 2, 2):
        block = array[tuple(slice(-_BLOCK, None) if end else slice(_BLOCK) for end in ends)]
        value = float(block.flat[0])
        if (value == 0 or value > _ABOVE_TISSUE_HU) and np.all(block == block.flat[0]):
            corner = [length - 1 if end else 0 for end, length in zip(ends, array.shape, strict=True)]
            seeds.setdefault(value, []).append(tuple(reversed(corner)))
    if not seeds or compute_value_range(ct)[0] > _FAT_HU:
        return ct
    for value, corners in seeds.items():
        filled = sitk.ConnectedThreshold(ct, corners, value, value, 1)
        ct = sitk.Mask(ct, filled, _AIR_HU, 1)
        notes.append(
            f"The outside of the field of view is filled with the value {value:g}, which is not air; it was read as "
            f"{_AIR_HU} HU."
        )
    return compact_ct(ct)


def replace_impossible_values(ct: sitk.Image, notes: list[str]) -> sitk.Image:
    """``ct`` (HU, int16 or float32) with air in place of values far below those of air. ``notes`` receives a note."""
    if ct.GetPixelID() == sitk.sitkInt16 or compute_value_range(ct)[0] >= _MIN_HU:
        return ct
    array = sitk.GetArrayFromImage(ct)
    impossible = array < _MIN_HU
    notes.append(
        f"{np.count_nonzero(impossible)} voxels have values down to {array.min():.3g}, far below air, as some programs "
        f"fill the outside of the field of view; they were read as {_AIR_HU} HU."
    )
    array[impossible] = _AIR_HU
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(ct)
    return compact_ct(changed)


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
        for axis, (first, last) in enumerate(_find_outermost_voxels(ct, fill_values)):
            area = step[0] * step[1] * step[2] / step[axis]
            self._ends += [(_get_voxel_indices(ends, axis), area) for ends in (first, last)]

    def find_truncated_labels(self, labels: NDArray[np.integer]) -> frozenset[int]:
        """The labels in ``labels`` (z, y, x) that reach an edge of the scan with more than a few voxels."""
        reaching = set()
        for index, area in self._ends:
            edge = labels[index]
            counts = np.bincount(edge[edge > 0])
            reaching |= {int(label) for label in np.flatnonzero(counts * area >= _MIN_AREA)}
        return frozenset(reaching)


def _find_outermost_voxels(
    ct: NDArray[np.generic], fill_values: NDArray[np.generic]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """For each axis (z, y, x), the first and the last voxel on each line along it that is not in ``fill_values``.

    The arrays have the shape of ``ct`` without the axis, and -1 for a line outside of the scan.
    """
    shapes = [ct.shape[:axis] + ct.shape[axis + 1 :] for axis in range(3)]
    ends = [(np.full(shape, -1, np.intp), np.full(shape, -1, np.intp)) for shape in shapes]
    # Plane by plane, as the voxels lie in memory.
    for z, plane in enumerate(ct):
        inside = np.ones(plane.shape, np.bool_)
        for value in fill_values:
            inside &= plane != value
        if not inside.any():
            continue
        first, last = ends[0]
        np.copyto(first, z, where=inside & (first < 0))
        np.copyto(last, z, where=inside)
        for axis, (first, last) in enumerate(ends[1:]):
            crossed = inside.any(axis=axis)
            length = inside.shape[axis]
            np.copyto(first[z], inside.argmax(axis=axis), where=crossed)
            np.copyto(last[z], length - 1 - np.flip(inside, axis).argmax(axis=axis), where=crossed)
    return ends


def _get_voxel_indices(along: NDArray[np.intp], axis: int) -> tuple[NDArray[np.intp], ...]:
    """The indices (z, y, x) of the voxels at ``along`` (-1 for none) on the lines along ``axis``."""
    across = np.nonzero(along >= 0)
    index = list(across)
    index.insert(axis, along[across])
    return tuple(index)
