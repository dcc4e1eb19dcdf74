"""Checks of MetaImage files (.mha, .mhd) that ITK does not make, or reports only on stderr."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import SimpleITK as sitk

from ..errors import ImageError
from . import file_errors
from .size_limits import require_allowed_size

_MAX_HEADER_BYTES = 1 << 20
_CHUNK = 1 << 20
# ITK looks at the first letter.
_TRUE, _FALSE = ("T", "t", "1"), ("F", "f", "0")
# ITK trusts NDims and writes that many numbers into arrays of ten.
_MAX_DIMENSIONS = 5
_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "LONG": 4, "ULONG": 4,
    "DOUBLE": 8, "LONG_LONG": 8, "ULONG_LONG": 8,
}  # fmt: skip
# Fields with one number per axis; ITK reads as many as NDims says.
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_SPACINGS = ("ElementSpacing", "ElementSize")
_MM = ("mm", "?", "")
_CONVERSION = (("Slope", "1"), ("Offset", "0"))
_NEARLY_STRAIGHT = 0.9  # the cosine of about 25 degrees
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS = ("Offset", "Position", "Origin")
# Fields that a header may repeat: they do not change the image.
_REMARKS = ("Comment", "Name", "ID", "ParentID", "Color", "AcquisitionDate")


def check_geometry_stated(path: Path) -> None:
    """Raise ImageError if the header lacks the spacing or the direction of the axes."""
    fields, _ = _read_fields(path)
    if not set(_SPACINGS) & fields.keys():
        raise file_errors.missing_spacing(path, "no 'ElementSpacing' in its header")
    if not set(_MATRICES) & fields.keys():
        raise file_errors.missing_orientation(path, "no 'TransformMatrix' in its header")
    units = fields.get("DistanceUnits", "mm")
    if units.lower() not in _MM:
        raise file_errors.missing_spacing(path, f"its 'DistanceUnits' are {units}, not mm")


def check_values_stated(path: Path, fields: dict[str, str]) -> None:
    """Raise ImageError if the header states a conversion of the stored values, which ITK does not apply."""
    slope, offset = (float(fields.get(f"ElementToIntensityFunction{name}", default)) for name, default in _CONVERSION)
    if (slope, offset) != (1.0, 0.0):
        raise ImageError(
            f"{path.name} stores values that must be converted: its header states a slope of {slope:g} and an offset "
            f"of {offset:g} (ElementToIntensityFunction), which most programs ignore.",
            "Export the CT with its values in HU and without this conversion.",
        )


def check_header(path: Path) -> list[str]:
    """Notes on a header without origin, with two orientations that differ, and of another modality than CT."""
    fields, _ = _read_fields(path)
    notes = []
    if not set(_ORIGINS) & fields.keys():
        notes.append(file_errors.describe_missing_origin(path, "no 'Offset'"))
    stated = fields.get("AnatomicalOrientation", "").upper()
    matrix = next(_parse_numbers(fields[name]) for name in _MATRICES if name in fields)
    possible = _compute_axis_codes(matrix)
    if possible and len(stated) == 3 and set(stated) <= set("RLAPIS") and stated not in possible:
        notes.append(
            f"{path.name} states its orientation in two ways that differ: AnatomicalOrientation is {stated}, but its "
            f"TransformMatrix means {possible[0]}. The matrix was used, as in Slicer. Check that left and right are "
            f"correct."
        )
    modality = fields.get("Modality", "").upper().removeprefix("MET_MOD_")
    if modality not in ("", "CT", "OTHER", "UNKNOWN"):
        notes.append(f"{path.name} states that it is not a CT: its Modality is {modality}.")
    return notes


def _compute_axis_codes(matrix: list[float]) -> tuple[str, ...]:
    """The orientation of a matrix (one row per axis, LPS) in letters: where the axes begin, as ITK writes it, and end.

    Programs do not agree on which of the two AnatomicalOrientation is. Empty for a matrix that is not 3 x 3 or too
    oblique for letters.
    """
    begin, end = "", ""
    for axis in (matrix[0:3], matrix[3:6], matrix[6:9]) if len(matrix) == 9 else ():
        main = max(range(3), key=lambda index: abs(axis[index]))
        if abs(axis[main]) < _NEARLY_STRAIGHT:
            return ()
        letters = ("RL", "AP", "IS")[main]
        begin += letters[axis[main] < 0]
        end += letters[axis[main] >= 0]
    return (begin, end) if begin else ()


def check_content(path: Path) -> None:
    """Check the file before ITK reads it.

    Raises ImageError if the header is truncated, does not describe an image or announces a size beyond the limit, and
    if the data file is missing, not a regular file in the same folder, or shorter than the header says. Compressed
    voxels are decompressed once to compare their checksum: ITK accepts a damaged stream, and fills the image with
    arbitrary values.
    """
    fields, header_bytes = _read_fields(path)
    size = _parse_size(fields, path)
    require_allowed_size(size, path.name)
    check_values_stated(path, fields)
    name = fields["ElementDataFile"]
    if name.split()[0].upper() == "LIST" or "%" in name:
        raise file_errors.several_data_files(path)
    local = name.upper() == "LOCAL"
    data_file = path if local else file_errors.find_data_file(path, name)
    expected = _count_data_bytes(fields)
    start = header_bytes if local else 0
    found = data_file.stat().st_size - start
    if expected is not None and found < expected:
        raise file_errors.truncated(path, expected, found)
    if expected is not None and not _is_compressed(fields) and "HeaderSize" not in fields:
        plane = expected // size[2] if len(size) > 2 else expected
        if found > expected and (not local or found - expected >= plane):
            raise file_errors.other_length(path, data_file, expected, found)
    if expected is None:
        _check_text(path, data_file, start, _count_voxels(fields))
    if _is_compressed(fields):
        _check_compressed(path, data_file, start, expected, _count_voxel_bytes(fields))


def check_voxels(path: Path, image: sitk.Image) -> None:
    """Nothing to check after reading: ``check_content`` has compared the checksum."""


def _check_compressed(path: Path, data_file: Path, start: int, stored: int | None, expected: int) -> None:
    """Raise ImageError unless the zlib stream at ``start``, of ``stored`` bytes, holds ``expected`` bytes."""
    unpacker, found = zlib.decompressobj(), 0
    with data_file.open("rb") as stream:
        stream.seek(start)
        left = data_file.stat().st_size - start if stored is None else stored
        while left > 0 and not unpacker.eof and (chunk := stream.read(min(_CHUNK, left))):
            left -= len(chunk)
            while chunk and not unpacker.eof:
                try:
                    # A few bytes can decompress to gigabytes.
                    found += len(unpacker.decompress(chunk, _CHUNK))
                except zlib.error:
                    raise file_errors.damaged(path, "MetaImage") from None
                chunk = unpacker.unconsumed_tail
                if found > expected:
                    raise file_errors.too_long(path)
    if found < expected:
        raise file_errors.truncated(path, expected, found)
    if not unpacker.eof:
        # The checksum at the end is missing.
        raise file_errors.damaged(path, "MetaImage")


def _check_text(path: Path, data_file: Path, start: int, expected: int) -> None:
    """Raise ImageError unless ``expected`` values in text begin at ``start``, the last followed by a space or newline.

    ITK stops without that end, and prints why to standard error.
    """
    found, is_between = 0, True
    with data_file.open("rb") as stream:
        stream.seek(start)
        while chunk := stream.read(_CHUNK):
            found += len(chunk.split()) - (not is_between and not chunk[:1].isspace())
            is_between = chunk[-1:].isspace()
    if found < expected or (found == expected and not is_between):
        raise file_errors.truncated(path)


def _parse_size(fields: dict[str, str], path: Path) -> list[int]:
    try:
        dimensions = int(fields.get("NDims", "0"))
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError
        # A spacing of NaN gets an error of its own.
        numbers = {name: _parse_numbers(fields[name], name in _SPACINGS) for name in _PER_AXIS if name in fields}
        matrices = {name: _parse_numbers(fields[name]) for name in _MATRICES if name in fields}
        size = [int(each) for each in fields["DimSize"].split()]
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        for name, default in _CONVERSION:
            float(fields.get(f"ElementToIntensityFunction{name}", default))
        if fields.get("BinaryData", "True")[:1] not in _TRUE + _FALSE:
            raise ValueError
        # Without this number, ITK fills the image with arbitrary values.
        if _is_compressed(fields) and int(fields["CompressedDataSize"]) < 1:
            raise ValueError
    except (ValueError, KeyError):
        raise file_errors.damaged(path, "MetaImage") from None
    # The dictionary keeps the order of the file. ITK needs the number of axes before the values of each axis.
    names = list(fields)
    if any(name in fields and names.index(name) < names.index("NDims") for name in (*_PER_AXIS, *_MATRICES)):
        raise file_errors.damaged(path, "MetaImage")
    is_known = fields.get("ElementType", "").removeprefix("MET_") in _BYTES
    counts_fit = all(len(each) == dimensions for each in numbers.values())
    matrices_fit = all(len(each) == dimensions**2 for each in matrices.values())
    if (
        not is_known
        or not counts_fit
        or not matrices_fit
        or len(size) != dimensions
        or min(size) < 1
        or not 1 <= channels <= 2**16
    ):
        raise file_errors.damaged(path, "MetaImage")
    return [*size, channels] if channels > 1 else size


def _parse_numbers(text: str, may_be_nan: bool = False) -> list[float]:
    """The numbers in ``text``. Raises ValueError for NaN, and for what only Python reads: "1_0", "1e999", "inf"."""
    numbers = [float(each) for each in text.split()]
    if "_" in text or not all(math.isfinite(each) or (may_be_nan and math.isnan(each)) for each in numbers):
        raise ValueError
    return numbers


def _count_data_bytes(fields: dict[str, str]) -> int | None:
    """The bytes of voxel data that the header states; None if they are unknown (text, unknown type)."""
    try:
        if _is_compressed(fields):
            return int(fields["CompressedDataSize"])
        if fields.get("BinaryData", "True")[:1] not in _TRUE:
            return None
        return _count_voxel_bytes(fields)
    except (KeyError, ValueError):
        return None


def _is_compressed(fields: dict[str, str]) -> bool:
    return fields.get("CompressedData", "False")[:1] in _TRUE


def _count_voxel_bytes(fields: dict[str, str]) -> int:
    """The bytes of the uncompressed voxels, according to a header that ``_parse_size`` accepts."""
    return _count_voxels(fields) * _BYTES[fields["ElementType"].removeprefix("MET_")]


def _count_voxels(fields: dict[str, str]) -> int:
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    return channels * math.prod(int(size) for size in fields["DimSize"].split())


def _add_field(fields: dict[str, str], name: str, value: str, path: Path) -> None:
    """Add a field. Raises ImageError if the header also states something else under this name or another for it."""
    # ElementSize, the extent of a voxel, may differ from ElementSpacing.
    group = next((names for names in (_ORIGINS, _MATRICES) if name in names), (name,))
    for other in group:
        if name not in _REMARKS and other in fields and _parse_value(fields[other]) != _parse_value(value):
            what = f"'{name}' twice" if other == name else f"'{other}' and '{name}'"
            raise file_errors.contradiction(
                path, f"its header states {what}, with different values", "Remove the wrong one"
            )
    fields[name] = value


def _parse_value(value: str) -> object:
    try:
        return [float(each) for each in value.split()]
    except ValueError:
        return value


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The ``name = value`` lines of the header, which ends with ``ElementDataFile``, and its length in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while stream.tell() < _MAX_HEADER_BYTES:
            line = stream.readline(_MAX_HEADER_BYTES)
            name, equals, value = file_errors.decode_header_text(line).partition("=")
            if not equals:
                break
            _add_field(fields, name.strip(), value.strip(), path)
            if name.strip() == "ElementDataFile" and value.strip():
                if "DimSize" not in fields:
                    break
                return fields, stream.tell()
    if "DimSize" in fields or "NDims" in fields:
        raise file_errors.truncated(path)
    raise file_errors.damaged(path, "MetaImage")
