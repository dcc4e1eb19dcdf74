"""Resampling from the model grid to the CT's grid: probabilities to labels (linear), maps (nearest neighbor).

The axes of the model grid are those of the CT, permuted and flipped, so each axis is resampled on its own.

``LabelResampler`` interpolates the probabilities linearly at each CT voxel (between two planes, then within the plane)
and takes the label with the largest one. The result is that of resampling the whole volume of probabilities, which is
never held in memory.

Most of this work can be skipped without changing a label. An organ can win in a CT voxel only if it beats the
background in at least one of the surrounding model voxels: elsewhere it stays below the background for any
interpolation weights (rounding preserves the order). So each organ is interpolated within its own box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid

Bytes = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
Indices = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


class NearestResampler:
    """Resamples maps of the grid ``model`` to the grid ``ct`` with nearest neighbors.

    The axes of ``model`` are those of ``ct``, permuted and flipped (see ``imaging.grid.make_model_grid``). ``indices``
    holds, for each axis (z, y, x) of ``model``, the model voxel nearest to each CT voxel.
    """

    def __init__(self, model: Grid, ct: Grid) -> None:
        to_model = np.linalg.inv(model.axes * np.array(model.spacing))
        steps = to_model @ (ct.axes * np.array(ct.spacing))
        start = to_model @ (np.array(ct.origin) - np.array(model.origin))
        indices, order = [], []
        for axis in (2, 1, 0):
            along = int(np.argmax(np.abs(steps[axis])))
            position = start[axis] + steps[axis, along] * np.arange(ct.size[along])
            indices.append(np.clip(np.rint(position), 0, model.size[axis] - 1).astype(np.intp))
            order.append(2 - along)
        self.indices: Indices = (indices[0], indices[1], indices[2])
        self._order = tuple(order)

    def transpose_to_model(self, on_ct: Bytes) -> Bytes:
        """Return a view of ``on_ct``, an array (z, y, x) of the CT, with the order of the model's axes."""
        return on_ct.transpose(self._order)

    def select_sampled_voxels(self, values: Bytes) -> Bytes:
        """Return the voxels of a model map (z, y, x) that are the nearest one of some CT voxel."""
        z, y, x = (np.unique(index) for index in self.indices)
        return values[np.ix_(z, y, x)]

    def resample_plane(self, values: Bytes, z: int) -> Bytes:
        """Return plane ``z`` of a model map (z, y, x), resampled to the CT's voxels along the model's y and x."""
        _, y, x = self.indices
        return values[z].take(y, axis=0).take(x, axis=1)

    def on_ct(self, values: Bytes, ct: Grid) -> Bytes:
        """Return a whole model map (z, y, x) on the grid ``ct`` (z, y, x)."""
        result = np.empty(ct.shape, np.uint8)
        for out, z in zip(self.transpose_to_model(result), self.indices[0], strict=True):
            out[...] = self.resample_plane(values, z)
        return result


# Offsets below this share of a voxel come from rounding in headers.
_SAME_POSITION = 1e-4


@dataclass(frozen=True)
class AxisInterpolation:
    """Linear interpolation along one axis.

    For each CT voxel: the model voxels ``lower`` and ``upper`` around it and the ``weight`` (0 to 1) of the upper one.
    Beyond the model grid's first and last voxel, the values of these voxels are repeated.
    """

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: FloatArray

    @classmethod
    def from_step_and_offset(cls, n_ct: int, n_model: int, step: float, offset: float) -> AxisInterpolation:
        """Interpolate at ``n_ct`` positions ``offset + step * index`` on an axis with ``n_model`` voxels."""
        position = np.clip(offset + step * np.arange(n_ct), 0, n_model - 1)
        lower = np.minimum(position.astype(np.intp), max(n_model - 2, 0))
        upper = np.minimum(lower + 1, n_model - 1)
        return cls(lower, upper, (position - lower).astype(np.float32))

    def find_dependent_voxels(self, first: int, last: int) -> slice:
        """Return the CT voxels whose value depends on the model voxels ``first`` to ``last``."""
        start = np.searchsorted(self.upper, first, side="left")
        stop = np.searchsorted(self.lower, last, side="right")
        return slice(int(start), int(stop))

    def interpolate(self, values: FloatArray, axis: int, part: slice, first: int) -> FloatArray:
        """Interpolate ``values`` (two axes) along ``axis`` at the CT voxels ``part``.

        ``first`` is the model voxel at which ``values`` begin.
        """
        weight = self.weight[part]
        if axis == 0:
            weight = weight[:, None]
        below = values.take(self.lower[part] - first, axis=axis)
        above = values.take(np.minimum(self.upper[part] - first, values.shape[axis] - 1), axis=axis)
        # In place. The form a + w (b - a) would not preserve the order of two organs under rounding; two products do.
        below *= 1 - weight
        above *= weight
        below += above
        return below


def make_axis_interpolations(ct: Grid, model: Grid) -> tuple[AxisInterpolation, AxisInterpolation, AxisInterpolation]:
    """Return the interpolation along (z, y, x) of the model grid, for a CT whose array is viewed along the same axes.

    The axes of ``model`` are those of ``ct``, permuted and flipped (see ``imaging.grid.make_model_grid``). Raises
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
        # Viewed along the model's axes, a flipped CT axis starts at its last voxel.
        offset = float(origin[axis]) + (step * (n_ct - 1) if step < 0 else 0.0)
        if abs(offset) < _SAME_POSITION:
            offset = 0.0
        axes.append(AxisInterpolation.from_step_and_offset(n_ct, model.size[axis], abs(step), offset))
    return axes[2], axes[1], axes[0]


class LabelResampler:
    """Takes probability planes of the model grid in order and fills in the labels on the CT's grid.

    ``labels`` is a writable uint8 view (depth, height, width) of the CT-sized label array, with the axes of the model
    grid (see ``imaging.grid.get_canonical_view``) and any strides. ``kept`` are the labels to write, None for all.
    Raises ValueError if the shape of ``labels`` is not that of the CT.
    """

    def __init__(self, labels: NDArray[np.uint8], ct: Grid, model: Grid, kept: frozenset[int] | None = None) -> None:
        self._labels = labels
        self._z, self._y, self._x = make_axis_interpolations(ct, model)
        expected = (len(self._z.lower), len(self._y.lower), len(self._x.lower))
        if labels.shape != expected:
            raise ValueError(f"labels must have the CT's shape {expected} along the model's axes, not {labels.shape}")
        self._written: NDArray[np.uint8] | None = None
        if kept is not None:
            self._written = np.array([label if label in kept else 0 for label in range(256)], np.uint8)
        self._below: _Plane | None = None
        self._next_slice = 0

    def add(self, z: int, probabilities: FloatArray) -> None:
        """Add plane ``z``, probabilities (channel, height, width), and write the CT slices up to it."""
        above = _Plane.from_probabilities(probabilities)
        below = self._below or above
        while self._next_slice < len(self._labels) and self._z.upper[self._next_slice] <= z:
            weight = self._z.weight[self._next_slice]
            is_below = weight == 0 and self._z.lower[self._next_slice] == z - 1
            self._labels[self._next_slice] = self._slice_labels(below, below if is_below else above, weight)
            self._next_slice += 1
        self._below = above

    def _slice_labels(self, below: _Plane, above: _Plane, weight: np.float32) -> NDArray[np.uint8]:
        labels = np.zeros((len(self._y.lower), len(self._x.lower)), dtype=np.uint8)
        candidates = _find_candidates(below, above, weight)
        if not candidates:
            return labels
        boxes = [
            (self._y.find_dependent_voxels(*each.rows), self._x.find_dependent_voxels(*each.columns))
            for each in candidates
        ]
        y, x = _merge_slices([box[0] for box in boxes]), _merge_slices([box[1] for box in boxes])
        if _is_empty(y) or _is_empty(x):
            return labels
        best = self._interpolate(_interpolate_channel(below, above, weight, 0), (0, 0), y, x)
        for each, box in zip(candidates, boxes, strict=True):
            if _is_empty(box[0]) or _is_empty(box[1]):
                continue
            values = self._interpolate(each.values, each.first, *box)
            best_here = best[_offset_slice(box[0], y), _offset_slice(box[1], x)]
            # Labels come in ascending order, so the last one that wins is the largest. A masked copy would take many
            # times as long as these two operations.
            wins = (values > best_here).view(np.uint8)
            np.maximum(best_here, values, out=best_here)
            np.maximum(labels[box], wins * np.uint8(each.label), out=labels[box])
        return labels if self._written is None else self._written[labels]

    def _interpolate(self, values: FloatArray, first: tuple[int, int], y: slice, x: slice) -> FloatArray:
        """Interpolate ``values`` (height, width) at the CT voxels ``y`` and ``x``.

        ``first`` (y, x) is the position of the first value in the model's plane.
        """
        top, bottom = self._y.lower[y.start], self._y.upper[y.stop - 1]
        left, right = self._x.lower[x.start], self._x.upper[x.stop - 1]
        rows = slice(top - first[0], bottom + 1 - first[0])
        columns = slice(left - first[1], right + 1 - first[1])
        # Columns first: the model plane has fewer rows than the CT's slice.
        part = self._x.interpolate(values[rows, columns], 1, x, left)
        return self._y.interpolate(part, 0, y, top)


class _Plane(NamedTuple):
    """A plane of the model grid.

    ``probabilities`` are (channel, height, width). ``rows`` (organ, height) and ``columns`` (organ, width) say where
    each organ beats the background in some voxel.
    """

    probabilities: FloatArray
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]

    @classmethod
    def from_probabilities(cls, probabilities: FloatArray) -> _Plane:
        """The plane of ``probabilities`` (channel, height, width), background first."""
        beats = probabilities[1:] > probabilities[0]
        return cls(probabilities, beats.any(axis=2), beats.any(axis=1))


class _Candidate(NamedTuple):
    """An organ that beats the background in some voxel between two planes.

    ``rows`` and ``columns`` are the first and last ones where it does. ``values`` (height, width) are its probabilities
    there and one voxel around; ``first`` (y, x) is the position of the first value in the model's plane.
    """

    label: int
    values: FloatArray
    first: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


def _find_candidates(below: _Plane, above: _Plane, weight: np.float32) -> list[_Candidate]:
    rows, columns = below.rows | above.rows, below.columns | above.columns
    if not rows.any():
        return []
    background = _interpolate_channel(below, above, weight, 0)
    candidates = []
    for organ in np.flatnonzero(rows.any(axis=1)).tolist():
        # Interpolation needs one more voxel on each side.
        y, x = _find_ends(rows[organ]), _find_ends(columns[organ])
        area = slice(max(y[0] - 1, 0), y[1] + 2), slice(max(x[0] - 1, 0), x[1] + 2)
        values = _interpolate_channel(below, above, weight, organ + 1, area)
        beats = values > background[area]
        if beats.any():
            y, x = _find_ends(beats.any(axis=1)), _find_ends(beats.any(axis=0))
            top, left = area[0].start, area[1].start
            inner = (y[0] + top, y[1] + top), (x[0] + left, x[1] + left)
            candidates.append(_Candidate(organ + 1, values, (top, left), *inner))
    return candidates


def _interpolate_channel(
    below: _Plane, above: _Plane, weight: np.float32, channel: int, area: tuple[slice, slice] = (slice(None),) * 2
) -> FloatArray:
    """Interpolate one channel (height, width) between two planes; ``weight`` is that of the upper one."""
    if above is below:
        return below.probabilities[(channel, *area)]
    return below.probabilities[(channel, *area)] * (1 - weight) + above.probabilities[(channel, *area)] * weight


def _find_ends(mask: NDArray[np.bool_] | np.bool_) -> tuple[int, int]:
    """Return the first and the last index that is True."""
    indices = np.flatnonzero(mask)
    return int(indices[0]), int(indices[-1])


def _merge_slices(parts: list[slice]) -> slice:
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def _offset_slice(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _is_empty(part: slice) -> bool:
    # A CT coarser than the model grid may have no voxel near a few model voxels.
    return bool(part.stop <= part.start)
