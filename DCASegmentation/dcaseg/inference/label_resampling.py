"""From probabilities on the model grid to labels and maps on the CT's own grid, slice by slice.

As resampling with nearest neighbors, only that the axes of both grids run along each other, so an index for each axis
is all that it takes.

Per CT voxel the probabilities are interpolated linearly (between two planes, then within the plane) and the largest
one gives the label. That is what resampling the whole volume of probabilities would give, without ever holding it.

The work is small because most of it can be left out without changing a label. An organ can win in a CT voxel only if
it beats the background in at least one of the model voxels around it: everywhere else it stays below the background
under any interpolation weights (and rounding, which keeps the order). So each organ is interpolated in its own box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid
from .region import Region

Bytes = NDArray[np.uint8]
Indices = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


class NearestResampler:
    """For each axis (z, y, x) of ``model`` the model voxel nearest to each CT voxel along it.

    ``model`` is a grid whose axes are those of ``ct``, permuted and flipped (``imaging.grid.model_grid``).
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

    def along_model(self, on_ct: Bytes) -> Bytes:
        """A view of an array (z, y, x) of the CT whose axes follow the model's; writing into it writes ``on_ct``."""
        return on_ct.transpose(self._order)

    def reached(self, values: Bytes) -> Bytes:
        """The part of a model map that any CT voxel takes its value from."""
        z, y, x = (np.unique(index) for index in self.indices)
        return values[np.ix_(z, y, x)]

    def plane(self, values: Bytes, z: int) -> Bytes:
        """Plane ``z`` of a model map at the CT's voxels along the model's y and x."""
        _, y, x = self.indices
        return values[z].take(y, axis=0).take(x, axis=1)

    def on_ct(self, values: Bytes, ct: Grid) -> Bytes:
        """A whole model map on the CT's grid (z, y, x)."""
        result = np.empty(ct.shape, np.uint8)
        for out, z in zip(self.along_model(result), self.indices[0], strict=True):
            out[...] = self.plane(values, z)
        return result


FloatArray = NDArray[np.float32]


class GridCanvas:
    """Puts planes (channel, height, width) of ``region`` into planes of the whole grid, (height, width) of ``size``.

    Where nothing was computed all channels are 0, but for the first one, the background's, where ``certain`` says so:
    then it is 1. A plane is good until the next but one is asked for: two take turns.
    """

    def __init__(self, region: Region, size: tuple[int, int], certain: bool) -> None:
        self._area = (slice(None), *region[1:])
        self._size = size
        self._is_whole = all(
            side.start == 0 and side.stop == length for side, length in zip(region[1:], size, strict=True)
        )
        self._outside = 1.0 if certain else 0.0
        self._planes: list[FloatArray] = []

    def paste_region(self, values: FloatArray, covered: NDArray[np.bool_] | None) -> FloatArray:
        """The whole plane; ``covered`` (height, width) tells which voxels of the region were computed, None for all."""
        if self._is_whole and covered is None:
            return values
        if not self._planes:
            self._planes = [self.blank(len(values)), self.blank(len(values))]
        self._planes.reverse()
        plane = self._planes[0]
        part = plane[self._area]
        part[:] = values
        if covered is not None:
            part[:, ~covered] = 0
            part[0, ~covered] = self._outside
        return plane

    def blank(self, channels: int) -> FloatArray:
        """A plane in which nothing was computed."""
        plane = np.zeros((channels, *self._size), np.float32)
        plane[0] = self._outside
        return plane


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


class LabelResampler:
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
        self._written: NDArray[np.uint8] | None = None
        if kept is not None:
            self._written = np.array([label if label in kept else 0 for label in range(256)], np.uint8)
        self._below: _Plane | None = None
        self._next_slice = 0

    def add(self, z: int, probabilities: NDArray[np.float32]) -> None:
        """Take plane ``z`` (channel, height, width) and write the CT slices that lie before it."""
        above = _Plane.of(probabilities)
        below = self._below or above
        while self._next_slice < len(self._labels) and self._z.upper[self._next_slice] <= z:
            weight = self._z.weight[self._next_slice]
            is_below = weight == 0 and self._z.lower[self._next_slice] == z - 1
            self._labels[self._next_slice] = self._slice_labels(below, below if is_below else above, weight)
            self._next_slice += 1
        self._below = above

    def _slice_labels(self, below: _Plane, above: _Plane, weight: np.float32) -> NDArray[np.uint8]:
        labels = np.zeros((len(self._y.lower), len(self._x.lower)), dtype=np.uint8)
        contenders = _contenders(below, above, weight)
        if not contenders:
            return labels
        boxes = [(self._y.touching(*each.rows), self._x.touching(*each.columns)) for each in contenders]
        y, x = _around([box[0] for box in boxes]), _around([box[1] for box in boxes])
        if _empty(y) or _empty(x):
            return labels
        best = self._interpolated(_between(below, above, weight, 0), (0, 0), y, x)
        for each, box in zip(contenders, boxes, strict=True):
            if _empty(box[0]) or _empty(box[1]):
                continue
            values = self._interpolated(each.values, each.first, *box)
            best_here = best[_within(box[0], y), _within(box[1], x)]
            # Labels come in rising order, so the last one that wins is the largest. Copies under a mask take many
            # times as long as these.
            wins = (values > best_here).view(np.uint8)
            np.maximum(best_here, values, out=best_here)
            np.maximum(labels[box], wins * np.uint8(each.label), out=labels[box])
        return labels if self._written is None else self._written[labels]

    def _interpolated(
        self, values: NDArray[np.float32], first: tuple[int, int], y: slice, x: slice
    ) -> NDArray[np.float32]:
        """``values`` (height, width), whose first is ``first`` of the model's plane, at the CT's ``y`` and ``x``."""
        top, bottom = self._y.lower[y.start], self._y.upper[y.stop - 1]
        left, right = self._x.lower[x.start], self._x.upper[x.stop - 1]
        rows = slice(top - first[0], bottom + 1 - first[0])
        columns = slice(left - first[1], right + 1 - first[1])
        # Columns first: the model plane has fewer rows than the CT's slice.
        part = self._x.along(values[rows, columns], 1, x, left)
        return self._y.along(part, 0, y, top)


class _Plane(NamedTuple):
    """A plane of the model grid: probabilities (channel, height, width), and for each organ the ``rows`` (organ,
    height) and ``columns`` (organ, width) where it beats the background somewhere."""

    probabilities: NDArray[np.float32]
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32]) -> _Plane:
        beats = probabilities[1:] > probabilities[0]
        return cls(probabilities, beats.any(axis=2), beats.any(axis=1))


class _Contender(NamedTuple):
    """An organ that beats the background in a voxel between two planes: first and last of its ``rows`` and
    ``columns``, and ``values`` (height, width) around them; the first of these is ``first`` of the model's plane."""

    label: int
    values: NDArray[np.float32]
    first: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


def _contenders(below: _Plane, above: _Plane, weight: np.float32) -> list[_Contender]:
    rows, columns = below.rows | above.rows, below.columns | above.columns
    if not rows.any():
        return []
    background = _between(below, above, weight, 0)
    found = []
    for organ in np.flatnonzero(rows.any(axis=1)).tolist():
        # One voxel more all around, for the interpolation.
        y, x = _ends(rows[organ]), _ends(columns[organ])
        area = slice(max(y[0] - 1, 0), y[1] + 2), slice(max(x[0] - 1, 0), x[1] + 2)
        values = _between(below, above, weight, organ + 1, area)
        beats = values > background[area]
        if beats.any():
            y, x = _ends(beats.any(axis=1)), _ends(beats.any(axis=0))
            top, left = area[0].start, area[1].start
            inner = (y[0] + top, y[1] + top), (x[0] + left, x[1] + left)
            found.append(_Contender(organ + 1, values, (top, left), *inner))
    return found


def _between(
    below: _Plane, above: _Plane, weight: np.float32, channel: int, area: tuple[slice, slice] = (slice(None),) * 2
) -> NDArray[np.float32]:
    """A channel (height, width) between two planes, ``weight`` the upper one's."""
    if above is below:
        return below.probabilities[(channel, *area)]
    return below.probabilities[(channel, *area)] * (1 - weight) + above.probabilities[(channel, *area)] * weight


def _ends(held: NDArray[np.bool_] | np.bool_) -> tuple[int, int]:
    """The first and the last index that is True."""
    found = np.flatnonzero(held)
    return int(found[0]), int(found[-1])


def _around(parts: list[slice]) -> slice:
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _empty(part: slice) -> bool:
    # A CT coarser than the model grid can have no voxel at all near a few model voxels.
    return bool(part.stop <= part.start)
