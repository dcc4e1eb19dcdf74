"""Checks of NRRD files that ITK does not make: the header must state the geometry, and the data file must exist.

ITK reads a NRRD file without ``space directions`` as if its axes were left, posterior, superior with 1 mm spacing.
"""

from __future__ import annotations

import gzip
import math
import re
import shutil
import struct
import zlib
from pathlib import Path

import SimpleITK as sitk

from . import file_errors
from .nifti import require_end
from .size_limits import require_allowed_size

# The spaces that ITK converts to its own LPS; in any other space, the axes cannot be related to the patient.
_PATIENT_SPACES = {
    "ras", "right-anterior-superior", "rast", "right-anterior-superior-time",
    "las", "left-anterior-superior", "last", "left-anterior-superior-time",
    "lps", "left-posterior-superior", "lpst", "left-posterior-superior-time",
}  # fmt: skip
_MAX_HEADER_BYTES = 1 << 20
_MAX_LINE_LENGTH = 700
_CHUNK = 1 << 20
_GZIP = ("gz", "gzip")
_ENCODINGS = ("raw", *_GZIP, "ascii", "text", "txt", "hex")
_MAX_DIMENSIONS = 5
_MM = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}
_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}


def check_geometry_stated(path: Path) -> None:
    """Raise ImageError if the header lacks the patient space, the axes' directions or spacing, or does not use mm."""
    fields, _ = _read_fields(path)
    directions = fields.get("space directions")
    if directions is None and "spacings" not in fields:
        raise file_errors.missing_spacing(path, "no 'space directions' or 'spacings' in its header")
    if directions is None:
        raise file_errors.missing_orientation(path, "no 'space directions' in its header")
    if fields.get("space", "").lower() not in _PATIENT_SPACES:
        raise file_errors.missing_orientation(path, "no anatomical 'space' in its header")
    units = {unit.strip().lower() for unit in fields.get("space units", "").split('"')} - _MM
    if units:
        raise file_errors.missing_spacing(path, f"its 'space units' are {', '.join(sorted(units))}, not mm")


def check_header(path: Path) -> list[str]:
    """A note on each optional value that the header does not state and ITK takes as 0."""
    fields, _ = _read_fields(path)
    return [] if "space origin" in fields else [file_errors.describe_missing_origin(path, "no 'space origin'")]


def check_content(path: Path) -> None:
    """Check the file before ITK reads it.

    Raises ImageError if the header does not describe an image, announces a size beyond the limit, or states an encoding
    that is not supported, and if the data file is missing, not a regular file in the same folder, or of another length
    than that of raw voxels. Compressed voxels are checked by ``check_voxels``, after they were read.
    """
    fields, header_bytes = _read_fields(path)
    size = _parse_size(fields, path)
    require_allowed_size(size, path.name)
    encoding = fields.get("encoding", "")
    if encoding.lower() not in _ENCODINGS:
        raise file_errors.unsupported_encoding(path, encoding)
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.split(" ")[0] == "LIST" or "%" in name):
        raise file_errors.several_data_files(path)
    data_file = _find_data_file(path, name)
    item = _BYTES.get(fields.get("type", "").lower())
    if fields.get("encoding", "").lower() == "raw" and item and not {"byte skip", "line skip"} & fields.keys():
        expected = math.prod(size) * item
        found = data_file.stat().st_size - (header_bytes if name is None else 0)
        if found < expected:
            raise file_errors.truncated(path, expected, found)
        if found > expected and (name is not None or found - expected >= math.prod(size[:2]) * item):
            raise file_errors.other_length(path, data_file, expected, found)


def count_time_points(path: Path) -> int:
    """The length of the axis that the header calls time; 0 without such an axis."""
    fields, _ = _read_fields(path)
    kinds = fields.get("kinds", "").lower().split()
    sizes = _parse_size(fields, path)
    return sizes[kinds.index("time")] if "time" in kinds and len(kinds) == len(sizes) else 0


def copy_without_time_axis(path: Path, folder: Path) -> Path:
    """A copy of the file in ``folder`` whose time axis, of length one, is a list, which ITK drops; it refuses time."""
    fields, header_bytes = _read_fields(path)
    raw = path.read_bytes()
    header = re.sub(rb"(?im)^(kinds:.*?)\btime\b", rb"\1list", raw[:header_bytes])
    copy = folder / f"volume{path.suffix.lower()}"
    copy.write_bytes(header + raw[header_bytes:])
    name = fields.get("data file", fields.get("datafile"))
    if name is not None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_find_data_file(path, name), folder / name)
    return copy


def check_voxels(path: Path, image: sitk.Image) -> None:
    """Compare the voxels of ``image``, read from ``path``, with the checksum of gzip, which ITK does not do.

    Raises ImageError if they differ, or the compressed data are damaged.
    """
    fields, header_bytes = _read_fields(path)
    if fields.get("encoding", "").lower() not in _GZIP or {"byte skip", "line skip"} & fields.keys():
        return
    name = fields.get("data file", fields.get("datafile"))
    data_file = _find_data_file(path, name)
    start = header_bytes if name is None else 0
    with data_file.open("rb") as stream:
        # Four bytes for the checksum and four for the length of the content.
        stream.seek(max(data_file.stat().st_size - 8, start))
        checksum, _ = struct.unpack("<II", stream.read(8).ljust(8, b"\0"))
        if zlib.crc32(sitk.GetArrayViewFromImage(image).data) == checksum:
            return
        # The checksum also differs if the file has another byte order, or something after the compressed data.
        stream.seek(start)
        left = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
        try:
            with gzip.GzipFile(fileobj=stream) as content:
                while left > 0 and (chunk := content.read(min(_CHUNK, left))):
                    left -= len(chunk)
                plane_bytes = math.prod(image.GetSize()[:2]) * image.GetSizeOfPixelComponent()
                require_end(content, path, plane_bytes)  # type: ignore[arg-type]
        except (EOFError, OSError, zlib.error):
            raise file_errors.damaged(path, "NRRD") from None
    if left > 0:
        raise file_errors.truncated(path)


def _require_short(line: bytes, path: Path) -> None:
    """Raise ImageError for a long header line that ITK may quote in an error message.

    A message of more than 1,000 bytes overwrites other memory. Comments, pairs of key and value, and the description
    of the content are never quoted.
    """
    is_pair = b":=" in line and b": " not in line.partition(b":=")[0]
    is_quoted = not is_pair and not line.startswith(b"#") and not line.lower().startswith(b"content: ")
    if len(line) > _MAX_LINE_LENGTH and is_quoted:
        raise file_errors.damaged(path, "NRRD")


def _find_data_file(path: Path, name: str | None) -> Path:
    return path if name is None else file_errors.find_data_file(path, name)


def _parse_size(fields: dict[str, str], path: Path) -> list[int]:
    try:
        dimensions = int(fields["dimension"])
        size = [int(each) for each in fields["sizes"].split()]
    except (KeyError, ValueError):
        raise file_errors.damaged(path, "NRRD") from None
    if not 1 <= dimensions <= _MAX_DIMENSIONS or len(size) != dimensions or min(size) < 1:
        raise file_errors.damaged(path, "NRRD")
    return size


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The ``field: value`` lines of the header, which ends at the first blank line, and its length in bytes."""
    with path.open("rb") as stream:
        if not stream.readline(80).startswith(b"NRRD"):
            raise file_errors.damaged(path, "NRRD")
        fields: dict[str, str] = {}
        while stream.tell() < _MAX_HEADER_BYTES:
            raw = stream.readline(_MAX_HEADER_BYTES)
            line = file_errors.decode_header_text(raw).rstrip("\r\n")
            if not line:
                if raw:
                    break
                # The end of the file; a detached header needs no blank line.
                return fields, stream.tell()
            _require_short(raw, path)
            name, colon, value = line.partition(":")
            if colon and not line.startswith("#") and not value.startswith("="):
                fields[name.strip().lower()] = value.strip()
        return fields, stream.tell()
