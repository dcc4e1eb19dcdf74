"""What ITK does not check about a NRRD file: that its header states the geometry and its data file is there.

ITK takes a NRRD file without ``space directions`` for one with axes along left, posterior, superior and 1 mm spacing.
"""

from __future__ import annotations

from pathlib import Path

from . import file_errors

# The spaces ITK converts to its own LPS; in any other the axes cannot be related to the patient.
_PATIENT_SPACES = {
    "ras", "right-anterior-superior", "rast", "right-anterior-superior-time",
    "las", "left-anterior-superior", "last", "left-anterior-superior-time",
    "lps", "left-posterior-superior", "lpst", "left-posterior-superior-time",
}  # fmt: skip
_LONGEST_HEADER = 1 << 20


def check_geometry_stated(path: Path) -> None:
    """Raises ImageError where the header lacks the patient space, the directions or the spacing of the axes."""
    fields = _read_fields(path)
    directions = fields.get("space directions")
    if directions is None and "spacings" not in fields:
        raise file_errors.missing_spacing(path, "no 'space directions' and no 'spacings' in its header")
    if directions is None:
        raise file_errors.missing_orientation(path, "no 'space directions' in its header")
    if fields.get("space", "").lower() not in _PATIENT_SPACES:
        raise file_errors.missing_orientation(path, "no anatomical 'space' in its header")


def check_content(path: Path) -> None:
    """Raises ImageError where a detached header's data file is missing; cut data are found by ITK while reading."""
    fields = _read_fields(path)
    name = fields.get("data file", fields.get("datafile"))
    if name is None or name.startswith("LIST") or "%" in name:
        return
    data_file = path.parent / name
    if not data_file.is_file():
        raise file_errors.missing_data_file(path, data_file)


def _read_fields(path: Path) -> dict[str, str]:
    """The ``field: value`` lines of the header, which ends at the first blank line."""
    with path.open("rb") as stream:
        if not stream.readline(80).startswith(b"NRRD"):
            raise file_errors.damaged(path, "NRRD")
        fields: dict[str, str] = {}
        while stream.tell() < _LONGEST_HEADER:
            line = stream.readline(_LONGEST_HEADER).decode("latin-1").rstrip("\r\n")
            if not line:
                break
            name, colon, value = line.partition(":")
            if colon and not line.startswith("#") and not value.startswith("="):
                fields[name.strip().lower()] = value.strip()
    return fields
