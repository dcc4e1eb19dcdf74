"""The voxels of DICOM images in HU, plane by plane.

Uncompressed voxels are taken from the file as they are; what is compressed is decoded by ITK (GDCM). Rescaling is done
here for both: stored values become HU by slope and intercept alone, whatever the photometric interpretation says about
their display (DICOM PS3.3, C.11.1). ITK inverts the values of MONOCHROME1 images.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .dicom_header import DicomHeader, Frame, open_data_set

_MONOCHROME1, _MONOCHROME2 = b"MONOCHROME1 ", b"MONOCHROME2 "


def planes_in_hu(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    """The planes ``wanted`` (frame numbers, from 0) of ``image`` as arrays (rows, columns) in HU: whole numbers where
    slope and intercept are, else float64. Raises ImageError where they cannot be decoded, OSError where the file cannot
    be read."""
    stored = _decoded(image, wanted) if image.voxels.bytes is None else _taken(image, wanted)
    for number, plane in zip(wanted, stored, strict=True):
        yield _rescaled(plane, image.planes[number])


def same_voxels(one: DicomHeader, other: DicomHeader) -> bool:
    """Whether two images of one plane each show the same: equal stored voxels, rescaled alike. Raises OSError."""
    rescaling = [(image.planes[0].slope, image.planes[0].intercept) for image in (one, other)]
    return repr(rescaling[0]) == repr(rescaling[1]) and _digest(one) == _digest(other)


def _digest(image: DicomHeader) -> str:
    with open_data_set(Path(image.file)) as stream:
        stream.seek(image.voxels.offset)
        raw = stream.read() if image.voxels.bytes is None else stream.read(image.voxels.bytes)
    return hashlib.sha256(raw).hexdigest()


def _rescaled(plane: np.ndarray, frame: Frame) -> np.ndarray:
    if frame.slope == 1 and frame.intercept.is_integer():
        return plane.astype(np.int32) + int(frame.intercept)
    return plane * np.float64(frame.slope) + frame.intercept


def _taken(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    voxels = image.voxels
    if voxels.allocated not in (8, 16, 32) or not 0 < voxels.stored <= voxels.allocated:
        raise _cannot_be_decoded(image)
    dtype = np.dtype(f"{'>' if voxels.big_endian else '<'}u{voxels.allocated // 8}")
    count = image.rows * image.columns
    with open_data_set(Path(image.file)) as stream:
        for number in wanted:
            stream.seek(voxels.offset + number * count * dtype.itemsize)
            raw = stream.read(count * dtype.itemsize)
            if len(raw) < count * dtype.itemsize:
                raise _cannot_be_decoded(image)
            words = np.frombuffer(raw, dtype).astype(np.int64)
            yield _stored_values(words, image).reshape(image.rows, image.columns)


def _stored_values(words: np.ndarray, image: DicomHeader) -> np.ndarray:
    """The bits that count, from ``high`` downward: old scanners kept overlays in the others."""
    voxels = image.voxels
    values = (words >> max(voxels.high + 1 - voxels.stored, 0)) & ((1 << voxels.stored) - 1)
    if voxels.signed:
        values -= (values >> (voxels.stored - 1)) << voxels.stored
    return values


def _decoded(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    with _readable_by_itk(image) as file:
        try:
            decoded = sitk.ReadImage(str(file), imageIO="GDCMImageIO")
        except RuntimeError:
            raise _cannot_be_decoded(image) from None
    array = sitk.GetArrayViewFromImage(decoded)
    if array.size != image.rows * image.columns * image.frames:
        raise _cannot_be_decoded(image)
    array = array.reshape(image.frames, image.rows, image.columns)
    # ITK has rescaled all frames as it would the first.
    slope, intercept = image.planes[0].slope, image.planes[0].intercept
    for number in wanted:
        plane = array[number]
        yield plane if (slope, intercept) == (1.0, 0.0) else np.rint((plane - np.float64(intercept)) / slope)


@contextmanager
def _readable_by_itk(image: DicomHeader) -> Iterator[Path]:
    """The file of ``image``, or a copy of it in a private folder that says MONOCHROME2 where it says MONOCHROME1."""
    file = Path(image.file)
    if image.voxels.photometric != "MONOCHROME1":
        yield file
        return
    raw = file.read_bytes()
    at = raw.find(b"\x28\0\x04\0CS\x0c\0" + _MONOCHROME1, 0, image.voxels.offset)
    if at < 0:
        raise _cannot_be_decoded(image)
    with tempfile.TemporaryDirectory(prefix="dca-slice-") as folder:
        copy = Path(folder) / "slice.dcm"
        copy.write_bytes(raw[: at + 8] + _MONOCHROME2 + raw[at + 20 :])
        yield copy


def _cannot_be_decoded(image: DicomHeader) -> ImageError:
    file = Path(image.file)
    return ImageError(
        f"{file.name} in {file.parent.name} cannot be decoded (damaged, or an unusual compression).",
        "Export the series again, uncompressed if possible.",
    )
