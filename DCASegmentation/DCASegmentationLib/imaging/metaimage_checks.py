"""What ITK does not check, or complains about on stderr only, in a MetaImage file (.mha, .mhd)."""

from __future__ import annotations

import math
from pathlib import Path

from . import file_errors

_LONGEST_HEADER = 1 << 20
_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4,
    "DOUBLE": 8, "LONG_LONG": 8, "ULONG_LONG": 8,
}  # fmt: skip


def check_geometry_stated(path: Path) -> None:
    """Raises ImageError where the header lacks the spacing or the direction of the axes."""
    fields, _ = _read_fields(path)
    if not {"ElementSpacing", "ElementSize"} & fields.keys():
        raise file_errors.missing_spacing(path, "no 'ElementSpacing' in its header")
    if not {"TransformMatrix", "Rotation", "Orientation"} & fields.keys():
        raise file_errors.missing_orientation(path, "no 'TransformMatrix' in its header")


def check_content(path: Path) -> None:
    """Raises ImageError where the header is cut off, the data file is missing or shorter than the header says."""
    fields, header_bytes = _read_fields(path)
    name = fields["ElementDataFile"]
    if name.split()[0].upper() == "LIST" or "%" in name:
        return
    local = name.upper() == "LOCAL"
    data_file = path if local else path.parent / name
    if not data_file.is_file():
        raise file_errors.missing_data_file(path, data_file)
    expected = _data_bytes(fields)
    found = data_file.stat().st_size - (header_bytes if local else 0)
    if expected is not None and found < expected:
        raise file_errors.truncated(path, expected, found)


def _data_bytes(fields: dict[str, str]) -> int | None:
    """Bytes of voxel data the header announces; None where it does not say (text, unknown type)."""
    try:
        if fields.get("CompressedData", "False").lower() == "true":
            return int(fields["CompressedDataSize"])
        if fields.get("BinaryData", "True").lower() != "true":
            return None
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        voxels = math.prod(int(size) for size in fields["DimSize"].split())
        return voxels * channels * _BYTES[fields["ElementType"].removeprefix("MET_")]
    except (KeyError, ValueError):
        return None


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The ``name = value`` lines of the header, which ends with ``ElementDataFile``, and its length in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while stream.tell() < _LONGEST_HEADER:
            line = stream.readline(_LONGEST_HEADER)
            name, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                break
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile" and value.strip():
                if "DimSize" not in fields:
                    break
                return fields, stream.tell()
    if "DimSize" in fields or "NDims" in fields:
        raise file_errors.truncated(path)
    raise file_errors.damaged(path, "MetaImage")
