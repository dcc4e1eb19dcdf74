"""Voxel values: HU to network input, the smallest type that holds a CT, checksums."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from . import file_errors


def window(array: np.ndarray, low_hu: float, high_hu: float) -> np.ndarray:
    """``array`` (HU, any shape) scaled so that ``low_hu`` becomes 0 and ``high_hu`` 1, clipped to 0..1, as float32.

    Equals MONAI's ``ScaleIntensityRange(low_hu, high_hu, 0, 1, clip=True)``. ``array`` itself stays as it is.
    Raises ValueError where the window has no width.
    """
    if not low_hu < high_hu:
        raise ValueError(f"the window {low_hu} to {high_hu} HU is empty")
    scaled = array.astype(np.float32)
    scaled -= np.float32(low_hu)
    scaled /= np.float32(high_hu - low_hu)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def standardize(array: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """(``array`` - ``mean``) / ``deviation`` as float32, zeros where there is no deviation.

    ``array`` itself stays as it is.
    """
    if deviation <= 0:
        return np.zeros(array.shape, np.float32)
    scaled = array.astype(np.float32)
    scaled -= np.float32(mean)
    scaled /= np.float32(deviation)
    return scaled


def slices(image: sitk.Image) -> Iterator[np.ndarray]:
    """The axial slices (y, x) of an image one after the other, as views: whole-volume temporaries cost a CT each."""
    yield from sitk.GetArrayViewFromImage(image)


def require_finite(image: sitk.Image, name: str) -> None:
    """Raises ImageError where voxels are NaN or infinite."""
    if image.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return
    bad = sum(int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in slices(image))
    if bad:
        raise file_errors.not_finite(name, bad)


def value_range(image: sitk.Image) -> tuple[float, float]:
    """Smallest and largest voxel value."""
    low, high = np.inf, -np.inf
    for plane in slices(image):
        low, high = min(low, float(plane.min())), max(high, float(plane.max()))
    return low, high


def has_only_integers(image: sitk.Image) -> bool:
    """Whether every voxel is a whole number, whatever type it is stored in."""
    if image.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return True
    return all(bool(np.array_equal(plane, np.rint(plane))) for plane in slices(image))


def voxel_checksum(voxels: np.ndarray) -> str:
    """CRC-32 of the voxels (z, y, x) of a CT: it tells that something changed, not who meant it to."""
    voxels = np.ascontiguousarray(voxels)
    return f"{zlib.crc32(voxels.data, zlib.crc32(repr(voxels.shape).encode())):08x}"


def left_out(labels: sitk.Image, table: Iterable[int]) -> dict[int, int]:
    """The labels of a map (background apart) that ``table`` does not name, and how many voxels each has."""
    counts = np.bincount(sitk.GetArrayViewFromImage(labels).ravel())
    named = {0, *table}
    return {number: int(count) for number, count in enumerate(counts) if count and number not in named}


def told_left_out(found: Iterable[dict[int, int]]) -> list[str]:
    """A sentence on the labels that the tables of several maps leave out (see ``left_out``), none where there are
    none."""
    voxels: dict[int, list[int]] = {}
    for each in found:
        for number, count in each.items():
            voxels.setdefault(number, []).append(count)
    if not voxels:
        return []
    listed = ", ".join(
        f"{number} ({sum(counts)} voxels in {len(counts)} case{'s' if len(counts) > 1 else ''})"
        for number, counts in sorted(voxels.items())
    )
    return [f"Labels that label_map leaves out count as background: {listed}."]


def assembled(planes: Iterable[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """The volume (z, y, x) of ``planes`` (y, x): int16 where every voxel fits without loss, else float32.

    Plane by plane, so that no more than one plane exists in a larger type.
    """
    volume = np.empty(shape, np.int16)
    for index, plane in enumerate(planes):
        if volume.dtype == np.int16 and not _int16_holds(plane):
            volume = volume.astype(np.float32)
        # A float64 may be too large for a float32; ``require_finite`` finds it as infinite.
        with np.errstate(over="ignore"):
            volume[index] = plane
    return volume


def _int16_holds(plane: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    if plane.min() < limits.min or plane.max() > limits.max:
        return False
    return plane.dtype.kind in "iu" or bool(np.array_equal(plane, np.rint(plane)))


def compact_ct(image: sitk.Image) -> sitk.Image:
    """The same HU as int16 where that loses nothing, else as float32. Voxels must be finite."""
    if image.GetPixelID() == sitk.sitkInt16:
        return image
    limits = np.iinfo(np.int16)
    low, high = value_range(image)
    fits = limits.min <= low and high <= limits.max and has_only_integers(image)
    return _cast(image, sitk.sitkInt16 if fits else sitk.sitkFloat32)


def compact_labels(image: sitk.Image, name: str) -> sitk.Image:
    """The same labels as uint8 or uint16. Raises ImageError where a voxel is negative, fractional or above 65535."""
    low, high = value_range(image)
    if low < 0 or high > np.iinfo(np.uint16).max or not has_only_integers(image):
        raise ImageError(
            f"{name} is no label map: its voxels are not whole numbers from 0 to 65535.",
            "Give a label map (0 = background, one number per organ), not the CT or a probability map.",
        )
    return _cast(image, sitk.sitkUInt8 if high <= np.iinfo(np.uint8).max else sitk.sitkUInt16)


def _cast(image: sitk.Image, pixel_id: int) -> sitk.Image:
    return image if image.GetPixelID() == pixel_id else sitk.Cast(image, pixel_id)
