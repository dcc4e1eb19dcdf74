"""Voxel values: conversion of HU to network input, compact types, label tables and checksums."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from . import file_errors


def apply_window(array: np.ndarray, low_hu: float, high_hu: float) -> np.ndarray:
    """``array`` (HU, any shape) scaled linearly from ``low_hu``..``high_hu`` to 0..1 and clipped, as float32.

    Equals MONAI's ``ScaleIntensityRange(low_hu, high_hu, 0, 1, clip=True)``. ``array`` is not changed. Raises
    ValueError if the window is empty.
    """
    if not low_hu < high_hu:
        raise ValueError(f"the window {low_hu} to {high_hu} HU is empty")
    scaled = array.astype(np.float32)
    scaled -= np.float32(low_hu)
    scaled /= np.float32(high_hu - low_hu)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def standardize(array: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """(``array`` - ``mean``) / ``deviation`` as float32; zeros if ``deviation`` is 0. ``array`` is not changed.

    ``mean`` and ``deviation`` are in HU.
    """
    if deviation <= 0:
        return np.zeros(array.shape, np.float32)
    scaled = array.astype(np.float32)
    scaled -= np.float32(mean)
    scaled /= np.float32(deviation)
    return scaled


def iter_slices(image: sitk.Image) -> Iterator[np.ndarray]:
    """The axial slices (y, x) of an image as views. Whole-volume temporaries would need as much memory as the CT."""
    yield from sitk.GetArrayViewFromImage(image)


def require_finite(image: sitk.Image, name: str) -> None:
    """Raise ImageError if voxels are NaN or infinite."""
    if image.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return
    bad = sum(int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in iter_slices(image))
    if bad:
        raise file_errors.not_finite(name, bad)


def compute_value_range(image: sitk.Image) -> tuple[float, float]:
    """The smallest and the largest voxel value."""
    low, high = np.inf, -np.inf
    for plane in iter_slices(image):
        low, high = min(low, float(plane.min())), max(high, float(plane.max()))
    return low, high


def has_only_integers(image: sitk.Image) -> bool:
    """Whether every voxel is a whole number, whatever type stores it."""
    if image.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return True
    return all(bool(np.array_equal(plane, np.rint(plane))) for plane in iter_slices(image))


def compute_voxel_checksum(voxels: np.ndarray) -> str:
    """A CRC-32 of the voxels (z, y, x) of a CT. It detects changes, but does not protect against deliberate ones."""
    voxels = np.ascontiguousarray(voxels)
    return f"{zlib.crc32(voxels.data, zlib.crc32(repr(voxels.shape).encode())):08x}"


_MAX_NAMED = 3


def count_ignored_labels(labels: sitk.Image, table: Iterable[int]) -> dict[int, int]:
    """The labels of a map (without background) that are missing in ``table``, with their number of voxels."""
    counts = np.bincount(sitk.GetArrayViewFromImage(labels).ravel())
    known = {0, *table}
    return {label: int(count) for label, count in enumerate(counts) if count and label not in known}


def describe_ignored_labels(found: Iterable[dict[int, int]]) -> list[str]:
    """At most one short message on the labels ignored in several label maps (``count_ignored_labels``)."""
    voxels: Counter[int] = Counter()
    cases: Counter[int] = Counter()
    concerned = 0
    for counts_by_label in found:
        voxels.update(counts_by_label)
        cases.update(counts_by_label.keys())
        concerned += bool(counts_by_label)
    if not voxels:
        return []
    largest = voxels.most_common(_MAX_NAMED)
    listed = ", ".join(
        f"{label} ({_format_count(count, 'voxel')} in {_format_count(cases[label], 'case')})"
        for label, count in largest
    )
    if len(voxels) <= _MAX_NAMED:
        return [f"Labels that are not in label_map count as background: {listed}."]
    total = f"{_format_count(voxels.total(), 'voxel')} in {_format_count(concerned, 'case')}"
    return [f"{len(voxels)} labels that are not in label_map count as background ({total}). The largest: {listed}."]


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def stack_planes(planes: Iterable[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """The volume (z, y, x) of ``planes`` (y, x), as int16 if that loses nothing, else as float32.

    Planes are converted one by one, so that at most one plane exists in a larger type.
    """
    volume = np.empty(shape, np.int16)
    for index, plane in enumerate(planes):
        if volume.dtype == np.int16 and not _fits_int16(plane):
            volume = volume.astype(np.float32)
        # Float64 values too large for float32 become infinite, which ``require_finite`` reports.
        with np.errstate(over="ignore"):
            volume[index] = plane
    return volume


def _fits_int16(plane: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    if plane.min() < limits.min or plane.max() > limits.max:
        return False
    return plane.dtype.kind in "iu" or bool(np.array_equal(plane, np.rint(plane)))


def compact_ct(image: sitk.Image) -> sitk.Image:
    """``image`` as int16 if that loses nothing, else as float32. Its voxels (HU) must be finite."""
    if image.GetPixelID() == sitk.sitkInt16:
        return image
    limits = np.iinfo(np.int16)
    low, high = compute_value_range(image)
    fits = limits.min <= low and high <= limits.max and has_only_integers(image)
    return _cast(image, sitk.sitkInt16 if fits else sitk.sitkFloat32)


def compact_labels(image: sitk.Image, name: str) -> sitk.Image:
    """``image`` as uint8 or uint16. Raises ImageError if a voxel is negative, fractional or above 65535."""
    low, high = compute_value_range(image)
    if low < 0 or high > np.iinfo(np.uint16).max or not has_only_integers(image):
        raise ImageError(
            f"{name} is not a label map: its voxels are not whole numbers from 0 to 65535.",
            "Choose a label map (0 = background, one number per organ), not the CT or a probability map.",
        )
    return _cast(image, sitk.sitkUInt8 if high <= np.iinfo(np.uint8).max else sitk.sitkUInt16)


def _cast(image: sitk.Image, pixel_id: int) -> sitk.Image:
    return image if image.GetPixelID() == pixel_id else sitk.Cast(image, pixel_id)
