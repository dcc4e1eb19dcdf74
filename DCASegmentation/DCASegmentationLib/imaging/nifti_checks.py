"""What ITK does not check about a NIfTI-1 file: that it is complete, finite, and states its geometry.

ITK reads a NIfTI file that was cut off without a word (the missing voxels are undefined), replaces voxels that are NaN
or infinite by 0 and a spacing of zero or NaN by 1 mm, and takes the axes as they come where the header names no
coordinate system.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import SimpleITK as sitk

from . import file_errors

_HEADER_BYTES = 348
_CHUNK = 1 << 20
# What ends a gzip file: CRC-32 and length modulo 2^32.
_TRAILER = struct.Struct("<2I")
_FLOATS = {16: "f4", 64: "f8"}  # NIfTI's data type codes


@dataclass(frozen=True)
class NiftiHeader:
    """The fields checked here: ``shape`` and ``spacing`` (mm) of the axes x, y, z, …"""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    states_orientation: bool
    data_offset: int
    data_bytes: int
    floats: np.dtype | None


def check_geometry_stated(path: Path) -> None:
    """Raises ImageError where the header has no usable spacing or neither a qform nor an sform."""
    with _open(path) as stream:
        header = _read_header(stream, path)
    if not all(math.isfinite(value) and value > 0 for value in header.spacing):
        raise file_errors.impossible_spacing(path, header.spacing)
    if not header.states_orientation:
        raise file_errors.missing_orientation(path, "its qform and sform codes are both 0")


def check_content(path: Path) -> None:
    """Before the file is read. Raises ImageError where it is cut off, its checksum is wrong, or voxels are NaN or
    infinite, as far as ``check_voxels`` will not find that with less work."""
    if _stated_checksum(path) is None:
        read_through(path)


def check_voxels(path: Path, image: sitk.Image) -> None:
    """The same once more for ``image``, that the file was read into or written from.

    A file that is compressed states its checksum. Where the voxels in the memory have it, nothing in between was lost,
    damaged or replaced, and the file need not be unpacked a second time.
    """
    stated = _stated_checksum(path)
    if stated is None:
        return
    with _open(path) as stream:
        before = stream.read(_read_header(stream, path).data_offset - _HEADER_BYTES)
        stream.seek(0)
        checksum = zlib.crc32(before, zlib.crc32(stream.read(_HEADER_BYTES)))
    if zlib.crc32(sitk.GetArrayViewFromImage(image).data, checksum) != stated:
        # Voxels of another type or order than the file's have another one, too.
        read_through(path)


def read_through(path: Path) -> None:
    """Reads the file to its end, 1 MiB at a time. Raises ImageError as ``check_content`` does."""
    found = not_finite = 0
    with _open(path) as stream:
        header = _read_header(stream, path)
        try:
            stream.read(max(0, header.data_offset - _HEADER_BYTES))
            while chunk := stream.read(_CHUNK):
                voxels = chunk[: max(0, header.data_bytes - found)]
                found += len(chunk)
                if header.floats is not None and len(voxels) % header.floats.itemsize == 0:
                    not_finite += int(np.count_nonzero(~np.isfinite(np.frombuffer(voxels, header.floats))))
        except EOFError:
            raise file_errors.truncated(path) from None
        except (gzip.BadGzipFile, zlib.error):
            raise file_errors.damaged(path, "NIfTI") from None
    if found < header.data_bytes:
        raise file_errors.truncated(path, header.data_bytes, found)
    if not_finite:
        raise file_errors.not_finite(path.name, not_finite)


def _stated_checksum(path: Path) -> int | None:
    """The checksum at the end of a compressed file, where the length that stands beside it is what the header wants;
    else None."""
    if not _is_compressed(path):
        return None
    with _open(path) as stream:
        header = _read_header(stream, path)
    with path.open("rb") as file:
        file.seek(-_TRAILER.size, os.SEEK_END)
        checksum, length = _TRAILER.unpack(file.read(_TRAILER.size))
    is_whole = header.data_offset >= _HEADER_BYTES and (header.data_offset + header.data_bytes) % 2**32 == length
    return int(checksum) if is_whole else None


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if _is_compressed(path) else path.open("rb")


def _read_header(stream: BinaryIO, path: Path) -> NiftiHeader:
    try:
        raw = stream.read(_HEADER_BYTES)
    except EOFError:
        raise file_errors.truncated(path) from None
    except (gzip.BadGzipFile, zlib.error):
        raise file_errors.damaged(path, "NIfTI") from None
    if len(raw) < _HEADER_BYTES:
        raise file_errors.truncated(path, _HEADER_BYTES, len(raw))
    order = "<" if struct.unpack_from("<i", raw, 0)[0] == _HEADER_BYTES else ">"
    if struct.unpack_from(order + "i", raw, 0)[0] != _HEADER_BYTES or raw[344:347] != b"n+1":
        raise file_errors.damaged(path, "NIfTI")
    dimensions, *sizes = struct.unpack_from(order + "8h", raw, 40)
    shape = tuple(sizes[:dimensions])
    if not 1 <= dimensions <= 7 or min(shape) < 1:
        raise file_errors.damaged(path, "NIfTI")
    datatype, bits = struct.unpack_from(order + "2h", raw, 70)
    pixdim = struct.unpack_from(order + "8f", raw, 76)
    (offset,) = struct.unpack_from(order + "f", raw, 108)
    qform_code, sform_code = struct.unpack_from(order + "2h", raw, 252)
    return NiftiHeader(
        shape=shape,
        spacing=tuple(pixdim[1 : 1 + min(dimensions, 3)]),
        states_orientation=qform_code > 0 or sform_code > 0,
        data_offset=int(offset),
        data_bytes=math.prod(shape) * bits // 8,
        floats=np.dtype(order + _FLOATS[datatype]) if datatype in _FLOATS else None,
    )
