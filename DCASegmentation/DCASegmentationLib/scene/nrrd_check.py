"""Whether an NRRD file was written to its end. VTK's writer says nothing when the disk fills up under it."""

from __future__ import annotations

import gzip
import math
import zlib
from typing import IO

_BYTES = {
    "signed char": 1, "int8": 1, "uchar": 1, "unsigned char": 1, "uint8": 1,
    "short": 2, "int16": 2, "ushort": 2, "unsigned short": 2, "uint16": 2,
    "int": 4, "int32": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "float": 4,
    "longlong": 8, "int64": 8, "ulonglong": 8, "uint64": 8, "double": 8,
}  # fmt: skip
_CHUNK = 1 << 20


def is_whole(stream: IO[bytes]) -> bool:
    """Whether header and all voxels are there; ``stream`` is an NRRD file with its data attached, raw or gzip."""
    header = _header(stream)
    if not {"type", "sizes", "encoding"} <= set(header) or header["type"] not in _BYTES:
        return False
    expected = _BYTES[header["type"]] * math.prod(int(size) for size in header["sizes"].split())
    compressed = header["encoding"] in ("gzip", "gz")
    try:
        data = gzip.GzipFile(fileobj=stream) if compressed else stream
        return sum(len(chunk) for chunk in iter(lambda: data.read(_CHUNK), b"")) == expected
    except (EOFError, OSError, zlib.error):
        return False


def _header(stream: IO[bytes]) -> dict[str, str]:
    """The fields of the header; empty when the blank line at its end is missing."""
    fields: dict[str, str] = {}
    while line := stream.readline():
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return fields
        name, _, value = text.partition(": ")
        fields[name] = value
    return {}
