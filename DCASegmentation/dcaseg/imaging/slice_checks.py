"""Checks of the slices of a CT: blank ones, copies, gaps, and slices out of order."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import SimpleITK as sitk

from .grid import Grid, find_nearest_world_axes

_MAX_LISTED_RUNS = 3
_EXPORT_AGAIN = "Export the CT again."
_PARTS_MISSING = f": parts of the scan may be missing. {_EXPORT_AGAIN}"
# The share of slices that may be blank at one end, as padding after a registration.
_MAX_BLANK_AT_AN_END = 0.25
# Resampling repeats the first and the last slice over at most this length.
_MAX_REPEATED_END_MM = 10.0

# Slices are compared by the means of squares of about 10 mm, which noise changes little, of soft tissue and fat.
_SQUARE_MM = 10.0
_SAMPLES_PER_SIDE = 5
_COMPARED_HU = (-200.0, 200.0)
# Squares in a slice, and slices, that a comparison needs.
_MIN_SQUARES = 100
_MIN_SLICES = 8
# The change from slice to slice, divided by that over about 25 mm (an even number of slices, so that it is small if
# every other slice is mirrored).
_FAR_MM = 25.0
_MAX_NEAR_TO_FAR = 0.8
# The largest change over at least 4 mm, divided by the usual change around it. Thinner slices can differ abruptly, as
# where the table ends.
_STEP_MM = 4.0
_NEIGHBORHOOD = 5
_MAX_JUMP = 2.5
_MIN_JUMP_HU = 3.0


def check_slices(image: sitk.Image) -> tuple[str, ...]:
    """Return notes on the slices of ``image``, a CT (3D) in HU; none if all looks usual.

    Along the last axis, notes report slices between others that are blank (one value) or copies of the slice before,
    and a quarter of the slices blank at one end. Along the axis closest to the patient's long axis, they report slices
    that look no more like their neighbors than like distant slices (out of order, alternately mirrored, or no CT), and
    abrupt changes (missing slices, or two scans in one volume). A gap of less than about 30 mm can pass as anatomy.
    """
    array = sitk.GetArrayViewFromImage(image)
    blank = [index for index, plane in enumerate(array) if _are_equal(plane, plane[:1, :1])]
    return (*_check_blanks_and_copies(array, blank, image.GetSpacing()[2]), *_check_order(image))


def _check_blanks_and_copies(array: np.ndarray, blank: list[int], spacing: float) -> tuple[str, ...]:
    """Notes on blank slices and copies, where ``spacing`` is the distance between slices in mm.

    Of a volume in which most slices are copies, as after resampling without interpolation, nothing is missing, and
    neither is it if resampling has repeated the first or the last slice.
    """
    filled = sorted(set(range(len(array))) - set(blank))
    if not filled:
        return ()
    copies = [at for one, at in pairwise(filled) if at == one + 1 and _are_equal(array[one], array[at])]
    if 2 * len(copies) >= len(filled):
        copies = []
    for first, last in _find_runs(copies):
        if (first == filled[0] + 1 or last == filled[-1]) and (last - first + 1) * spacing <= _MAX_REPEATED_END_MM:
            copies = [at for at in copies if not first <= at <= last]
    ends = [at for at in blank if at < filled[0]], [at for at in blank if at > filled[-1]]
    padding = {at for end in ends if len(end) < _MAX_BLANK_AT_AN_END * len(array) for at in end}
    missing = [at for at in blank if at not in padding]
    notes = []
    if missing:
        notes.append(f"{_format_slice_numbers(missing)} blank{_PARTS_MISSING}")
    if copies:
        what = "a copy" if len(copies) == 1 else "copies"
        source = f"slice {copies[0]}" if len(_find_runs(copies)) == 1 else "the slices before them"
        notes.append(f"{_format_slice_numbers(copies)} {what} of {source}{_PARTS_MISSING}")
    return tuple(notes)


def _check_order(image: sitk.Image) -> tuple[str, ...]:
    """Notes on slices, along the patient's long axis, that are out of order or missing.

    Blank slices and copies have their own notes, so they are left out here.
    """
    axis = next(
        axis for axis, (world, _) in enumerate(find_nearest_world_axes(Grid.from_image(image).axes)) if world == 2
    )
    slices = _slice_means(image, axis)
    if slices.shape[1] < _MIN_SQUARES:
        return ()
    used = _remove_duplicates(slices, np.flatnonzero(np.ptp(slices, axis=1) > 0))
    if len(used) < _MIN_SLICES:
        return ()
    spacing = image.GetSpacing()[axis]
    far = max(2, 2 * round(0.5 * _FAR_MM / spacing))
    if len(used) >= far + _MIN_SLICES // 2 and _compute_mean_change(
        slices[used], 1
    ) > _MAX_NEAR_TO_FAR * _compute_mean_change(slices[used], far):
        return (
            "Neighboring slices look no more alike than distant ones: slices may be out of order or mirrored, or the "
            f"image may not be a CT. {_EXPORT_AGAIN}",
        )
    used = used[:: max(1, math.ceil(_STEP_MM / spacing))]
    if len(used) < _MIN_SLICES:
        return ()
    changes = np.abs(np.diff(slices[used], axis=0)).mean(axis=1)
    usual_step = np.diff(used).min()
    jumps = [
        "{:.0f} and {:.0f} mm".format(*sorted(_get_slice_position(image, axis, each) for each in used[at : at + 2]))
        for at, change in enumerate(changes)
        if used[at + 1] - used[at] == usual_step
        and change > max(_MAX_JUMP * _compute_median_change(changes, at), _MIN_JUMP_HU)
    ]
    if not jumps:
        return ()
    more = ", …" if len(jumps) > _MAX_LISTED_RUNS else ""
    return (
        f"The anatomy changes abruptly between S = {', '.join(jumps[:_MAX_LISTED_RUNS])}{more}: slices may be missing "
        "or out of order, or the patient moved. Look at the CT there.",
    )


def _slice_means(image: sitk.Image, axis: int) -> np.ndarray:
    """For each slice along the index axis ``axis``: the means of squares of about 10 mm (slice, square), in HU."""
    planes = np.moveaxis(sitk.GetArrayViewFromImage(image), 2 - axis, 0)
    spacing = [step for other, step in reversed(list(enumerate(image.GetSpacing()))) if other != axis]
    steps = [max(1, round(_SQUARE_MM / _SAMPLES_PER_SIDE / step)) for step in spacing]
    sampled = planes[:, :: steps[0], :: steps[1]].astype(np.float32)
    np.clip(sampled, *_COMPARED_HU, out=sampled)
    sides = [max(1, round(_SQUARE_MM / (each * step))) for each, step in zip(steps, spacing, strict=True)]
    rows, columns = (length // side for length, side in zip(sampled.shape[1:], sides, strict=True))
    squares = sampled[:, : rows * sides[0], : columns * sides[1]]
    return squares.reshape(len(planes), rows, sides[0], columns, sides[1]).mean(axis=(2, 4)).reshape(len(planes), -1)


def _compute_mean_change(slices: np.ndarray, step: int) -> float:
    """The mean change over ``step`` slices, in HU."""
    return float(np.abs(slices[step:] - slices[:-step]).mean())


def _remove_duplicates(slices: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The indices ``used`` without those of slices that look like the next one in ``used``."""
    changes = np.abs(np.diff(slices[used], axis=0)).mean(axis=1)
    return used[np.append(changes > 0.01 * np.median(changes), True)] if len(changes) else used


def _compute_median_change(changes: np.ndarray, at: int) -> float:
    """The median of the changes from slice to slice around the one at ``at``."""
    first = max(0, at - _NEIGHBORHOOD)
    return float(np.median(np.delete(changes[first : at + _NEIGHBORHOOD + 1], at - first)))


def _get_slice_position(image: sitk.Image, axis: int, at: int) -> float:
    """The coordinate S (mm) of the center of the slice ``at`` along the index axis ``axis``."""
    index = [0.5 * (length - 1) for length in image.GetSize()]
    index[axis] = float(at)
    return float(image.TransformContinuousIndexToPhysicalPoint(index)[2])


def _format_slice_numbers(indices: list[int]) -> str:
    """The beginning of a sentence about the slices with these ``indices`` (from 0), counted from 1."""
    if len(indices) == 1:
        return f"Slice {indices[0] + 1} is"
    runs = [f"{first + 1} to {last + 1}" if last > first else f"{first + 1}" for first, last in _find_runs(indices)]
    return f"Slices {', '.join(runs[:_MAX_LISTED_RUNS])}{', …' if len(runs) > _MAX_LISTED_RUNS else ''} are"


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two planes are equal, where ``other`` may also be a single value. Most differ in a few voxels already."""
    few = slice(None, None, 16)
    return bool((one[few, few] == other[few, few]).all() and (one == other).all())


def _find_runs(indices: list[int]) -> list[tuple[int, int]]:
    """The first and last of each run of consecutive numbers."""
    starts = [at for at in indices if at - 1 not in indices]
    ends = [at for at in indices if at + 1 not in indices]
    return list(zip(starts, ends, strict=True))
