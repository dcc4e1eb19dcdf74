"""What ITK does not check about a NIfTI-1 file: that it is complete and that it states its geometry.

ITK reads a NIfTI file that was cut off without a word (the missing voxels are undefined), replaces a spacing of zero or
NaN by 1 mm, and takes the axes as they come where the header names no coordinate system.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from . import file_errors

_HEADER_BYTES = 348
_CHUNK = 1 << 20


@dataclass(frozen=True)
class NiftiHeader:
    """The fields checked here: ``shape`` and ``spacing`` (mm) of the axes x, y, z, …, bytes to the last voxel."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    states_orientation: bool
    total_bytes: int


def check_geometry_stated(path: Path) -> None:
    """Raises ImageError where the header has no usable spacing or neither a qform nor an sform."""
    with _open(path) as stream:
        header = _read_header(stream, path)
    if not all(math.isfinite(value) and value > 0 for value in header.spacing):
        raise file_errors.impossible_spacing(path, header.spacing)
    if not header.states_orientation:
        raise file_errors.missing_orientation(path, "its qform and sform codes are both 0")


def check_complete(path: Path) -> None:
    """Reads the file to its end, 1 MiB at a time; raises ImageError where it is cut off or its checksum is wrong."""
    with _open(path) as stream:
        header = _read_header(stream, path)
        found = _HEADER_BYTES
        try:
            while chunk := stream.read(_CHUNK):
                found += len(chunk)
        except EOFError:
            raise file_errors.truncated(path) from None
        except (gzip.BadGzipFile, zlib.error):
            raise file_errors.damaged(path, "NIfTI") from None
    if found < header.total_bytes:
        raise file_errors.truncated(path, header.total_bytes, found)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")


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
    (bits,) = struct.unpack_from(order + "h", raw, 72)
    pixdim = struct.unpack_from(order + "8f", raw, 76)
    (offset,) = struct.unpack_from(order + "f", raw, 108)
    qform_code, sform_code = struct.unpack_from(order + "2h", raw, 252)
    return NiftiHeader(
        shape=shape,
        spacing=tuple(pixdim[1 : 1 + min(dimensions, 3)]),
        states_orientation=qform_code > 0 or sform_code > 0,
        total_bytes=int(offset) + math.prod(shape) * bits // 8,
    )
