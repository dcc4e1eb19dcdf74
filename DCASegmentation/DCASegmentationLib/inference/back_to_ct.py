"""From probabilities on the model grid to labels on the CT's own grid, slice by slice.

Per CT voxel the probabilities are interpolated linearly (between two planes, then within the plane) and the largest
one gives the label. That is what resampling the whole volume of probabilities would give, without ever holding it.

The work is small because most of it can be left out without changing a label. An organ can win in a CT voxel only if
it beats the background in at least one of the model voxels around it: everywhere else it stays below the background
under any interpolation weights (and rounding, which keeps the order). So each organ is interpolated in its own box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid

# Offsets below this share of a voxel come from rounded headers.
_SAME_POSITION = 1e-4


@dataclass(frozen=True)
class AxisInterpolation:
    """For each voxel along one axis of the CT: the model voxels below and above it and the upper one's weight.

    Beyond the model grid's first and last voxel their values are kept.
    """

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: NDArray[np.float32]

    @classmethod
    def between(cls, n_ct: int, n_model: int, step: float, offset: float) -> AxisInterpolation:
        """``n_ct`` voxels at positions ``offset + step * index`` of an axis with ``n_model`` voxels."""
        position = np.clip(offset + step * np.arange(n_ct), 0, n_model - 1)
        lower = np.minimum(position.astype(np.intp), max(n_model - 2, 0))
        upper = np.minimum(lower + 1, n_model - 1)
        return cls(lower, upper, (position - lower).astype(np.float32))

    def touching(self, first: int, last: int) -> slice:
        """The CT voxels whose value depends on the model voxels ``first`` to ``last``."""
        start = np.searchsorted(self.upper, first, side="left")
        stop = np.searchsorted(self.lower, last, side="right")
        return slice(int(start), int(stop))

    def along(self, values: NDArray[np.float32], axis: int, part: slice, first: int) -> NDArray[np.float32]:
        """``values`` (two axes) interpolated for the CT voxels ``part`` along ``axis``; they begin at ``first``."""
        weight = self.weight[part]
        if axis == 0:
            weight = weight[:, None]
        below = values.take(self.lower[part] - first, axis=axis)
        above = values.take(np.minimum(self.upper[part] - first, values.shape[axis] - 1), axis=axis)
        # In place and as a + w (b - a) would not keep the order of two organs under rounding; two products do.
        below *= 1 - weight
        above *= weight
        below += above
        return below


def axis_interpolations(ct: Grid, model: Grid) -> tuple[AxisInterpolation, AxisInterpolation, AxisInterpolation]:
    """Interpolation along (z, y, x) of the model grid for a CT whose voxels are viewed along the same axes.

    ``model`` is a grid whose axes are those of ``ct``, permuted and flipped (``imaging.grid.model_grid``). Raises
    ValueError for grids that are rotated against each other.
    """
    to_model = np.linalg.inv(np.reshape(model.direction, (3, 3)) * np.asarray(model.spacing))
    steps = to_model @ (np.reshape(ct.direction, (3, 3)) * np.asarray(ct.spacing))
    origin = to_model @ (np.asarray(ct.origin) - np.asarray(model.origin))
    axes = []
    for axis in range(3):
        ct_axis = int(np.argmax(np.abs(steps[axis])))
        step = float(steps[axis, ct_axis])
        if np.abs(np.delete(steps[axis], ct_axis)).max() > 1e-3 * abs(step):
            raise ValueError("the model grid's axes must be the CT's own, permuted or flipped")
        n_ct = ct.size[ct_axis]
        # Viewed along the model's axes, a flipped axis starts at its last voxel.
        offset = float(origin[axis]) + (step * (n_ct - 1) if step < 0 else 0.0)
        if abs(offset) < _SAME_POSITION:
            offset = 0.0
        axes.append(AxisInterpolation.between(n_ct, model.size[axis], abs(step), offset))
    return axes[2], axes[1], axes[0]


class LabelsOnCTGrid:
    """Takes probability planes of the model grid in order and fills in labels on the CT's grid.

    ``labels`` is a writable uint8 view (depth, height, width) of the CT-sized label array whose axes run like the
    model grid's (``imaging.canonical``); it may be strided in any way. ``kept`` are the labels to write, None for all.
    """

    def __init__(self, labels: NDArray[np.uint8], ct: Grid, model: Grid, kept: frozenset[int] | None = None) -> None:
        self._labels = labels
        self._z, self._y, self._x = axis_interpolations(ct, model)
        expected = (len(self._z.lower), len(self._y.lower), len(self._x.lower))
        if labels.shape != expected:
            raise ValueError(f"labels must have the CT's shape {expected} along the model's axes, not {labels.shape}")
        self._written = np.arange(256, dtype=np.uint8)
        if kept is not None:
            self._written[[label for label in range(256) if label not in kept]] = 0
        self._below: NDArray[np.float32] | None = None
        self._next_slice = 0

    def add(self, z: int, probabilities: NDArray[np.float32]) -> None:
        """Take plane ``z`` (channel, height, width) and write the CT slices that lie before it."""
        below = probabilities if self._below is None else self._below
        while self._next_slice < len(self._labels) and self._z.upper[self._next_slice] <= z:
            weight = self._z.weight[self._next_slice]
            if weight == 0 and self._z.lower[self._next_slice] == z - 1:
                plane = below
            else:
                plane = below * (1 - weight) + probabilities * weight
            self._labels[self._next_slice] = self._slice_labels(plane)
            self._next_slice += 1
        self._below = probabilities

    def _slice_labels(self, plane: NDArray[np.float32]) -> NDArray[np.uint8]:
        labels = np.zeros((len(self._y.lower), len(self._x.lower)), dtype=np.uint8)
        contenders = plane[1:] > plane[0]
        rows = np.flatnonzero(contenders.any(axis=(0, 2)))
        if rows.size == 0:
            return labels
        columns = np.flatnonzero(contenders.any(axis=(0, 1)))
        box = (self._y.touching(rows[0], rows[-1]), self._x.touching(columns[0], columns[-1]))
        if _empty(box[0]) or _empty(box[1]):
            return labels
        best = self._interpolated(plane[0], *box)
        for label in np.flatnonzero(contenders.any(axis=(1, 2))) + 1:
            rows = np.flatnonzero(contenders[label - 1].any(axis=1))
            columns = np.flatnonzero(contenders[label - 1].any(axis=0))
            y = self._y.touching(rows[0], rows[-1])
            x = self._x.touching(columns[0], columns[-1])
            if _empty(y) or _empty(x):
                continue
            values = self._interpolated(plane[label], y, x)
            best_here = best[_within(y, box[0]), _within(x, box[1])]

            wins = values > best_here
            np.copyto(best_here, values, where=wins)
            np.copyto(labels[y, x], np.uint8(label), where=wins)
        return self._written[labels]

    def _interpolated(self, values: NDArray[np.float32], y: slice, x: slice) -> NDArray[np.float32]:
        top, bottom = self._y.lower[y.start], self._y.upper[y.stop - 1]
        left, right = self._x.lower[x.start], self._x.upper[x.stop - 1]
        # Columns first: the model plane has fewer rows than the CT's slice.
        part = self._x.along(values[top : bottom + 1, left : right + 1], 1, x, left)
        return self._y.along(part, 0, y, top)


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _empty(part: slice) -> bool:
    # A CT coarser than the model grid can have no voxel at all near a few model voxels.
    return bool(part.stop <= part.start)
