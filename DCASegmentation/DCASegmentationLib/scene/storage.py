"""Segmentations, tables, volumes, and scenes on disk: a file is written completely or not at all.

Also the temporary folders of runs, in Slicer's own temporary directory.
"""

from __future__ import annotations

import io
import math
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import slicer
import vtk

from dcaseg.errors import OutputError, get_reason
from dcaseg.imaging.writers import temporary_folder
from dcaseg.temp_paths import clean, make_partial_path
from DCASegmentationLib.scene.segmentation import require_voxels

_BYTES = {
    "signed char": 1, "int8": 1, "uchar": 1, "unsigned char": 1, "uint8": 1,
    "short": 2, "int16": 2, "ushort": 2, "unsigned short": 2, "uint16": 2,
    "int": 4, "int32": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "float": 4,
    "longlong": 8, "int64": 8, "ulonglong": 8, "uint64": 8, "double": 8,
}  # fmt: skip
# The header and the trailer.
_MIN_GZIP_BYTES = 18


def is_whole(stream: IO[bytes]) -> bool:
    """Whether an NRRD file was written to its end; ``stream`` has its data attached, raw or compressed with gzip.

    Compressed data are not decompressed: they end with the number of bytes before compression (RFC 1952).
    """
    header = _read_header(stream)
    if not {"type", "sizes", "encoding"} <= set(header) or header["type"] not in _BYTES:
        return False
    expected = _BYTES[header["type"]] * math.prod(int(size) for size in header["sizes"].split())
    start, end = stream.tell(), stream.seek(0, io.SEEK_END)
    if header["encoding"] not in ("gzip", "gz"):
        return end - start == expected
    if end - start < _MIN_GZIP_BYTES:
        return False
    stream.seek(-4, io.SEEK_END)
    return int.from_bytes(stream.read(4), "little") == expected % 2**32


def _read_header(stream: IO[bytes]) -> dict[str, str]:
    """The fields of the header; empty if the blank line at its end is missing."""
    fields: dict[str, str] = {}
    while line := stream.readline():
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return fields
        name, _, value = text.partition(": ")
        fields[name] = value
    return {}


_TYPES = {
    "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32",
    "int64": "int64", "uint64": "uint64", "float32": "float", "float64": "double",
}  # fmt: skip


def write_nrrd(voxels: np.ndarray, index_to_lps: np.ndarray, path: Path) -> None:
    """Write ``voxels`` (z, y, x), with one value per voxel, as an uncompressed NRRD file.

    ``index_to_lps`` (4, 4) maps voxel indices (i, j, k) to LPS (mm). Raises OSError if the file cannot be written, and
    ValueError if NRRD has no name for the voxel type.
    """
    name = _TYPES.get(voxels.dtype.name)
    if name is None:
        raise ValueError(f"voxels of type {voxels.dtype} cannot be written as NRRD")
    vectors = [_format_vector(index_to_lps[:3, axis]) for axis in range(4)]
    header = (
        "NRRD0004",
        f"type: {name}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(size) for size in voxels.shape[::-1])}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        f"endian: {sys.byteorder}",
        "encoding: raw",
        f"space origin: {vectors[3]}",
        "",
        "",
    )
    with path.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(np.ascontiguousarray(voxels).data.cast("B"))


def _format_vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


# Forbidden in file names by Windows, of which macOS and Linux forbid a part.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]+')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_MAX_NAME_LENGTH = 120  # characters, which leaves room for an extension and a number


def sanitize_file_name(name: str) -> str:
    """``name`` as a file name, without extension, that is allowed on Windows, macOS, and Linux.

    A DICOM series may be called "6: CHEST/ABD", which would be a file in another folder.
    """
    safe = _FORBIDDEN.sub("_", name)[:_MAX_NAME_LENGTH].strip(" .")
    return f"_{safe}" if _DEVICES.match(safe) else safe or "untitled"


CHOOSE_ANOTHER_FOLDER = "Choose an existing folder that you can write to and that has free space."


def save_segmentation(node: Any, path: Path, overwrite: bool = False) -> None:
    """Write a vtkMRMLSegmentationNode as .seg.nrrd. Raises UserError if it is not stored as voxels, and OutputError."""
    require_voxels(node)
    with _atomic_output(path, ".seg.nrrd", overwrite) as unfinished:
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetScene(slicer.mrmlScene)
        storage.SetFileName(str(unfinished))
        storage.SetUseCompression(True)
        if not storage.WriteData(node) or not _is_whole_file(unfinished):
            raise OutputError(f"The segmentation cannot be written to {path}.", CHOOSE_ANOTHER_FOLDER)


def save_table(text: str, path: Path, overwrite: bool = False) -> None:
    """Write a table, given as CSV text. Raises OutputError."""
    with _atomic_output(path, ".csv", overwrite) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_scene_bundle(path: Path, overwrite: bool = False) -> None:
    """Write the whole scene with its data as one .mrb file, which Slicer can open. Raises OutputError."""
    with _atomic_output(path, ".mrb", overwrite) as unfinished:
        if not slicer.mrmlScene.WriteToMRB(str(unfinished)) or not _is_complete(unfinished):
            raise OutputError(f"The scene cannot be written to {path}.", CHOOSE_ANOTHER_FOLDER)


def _is_whole_file(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_whole(stream)
    except OSError:
        return False


def _is_complete(bundle: Path) -> bool:
    """Whether the archive contains a scene and only complete images; a full disk truncates both without an error."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            scenes = [name for name in archive.namelist() if name.endswith(".mrml")]
            images = [name for name in archive.namelist() if name.endswith(".nrrd")]
            return (
                len(scenes) == 1
                and archive.read(scenes[0]).rstrip().endswith(b"</MRML>")
                and all(_is_whole_member(archive, name) for name in images)
            )
    except (OSError, zipfile.BadZipFile):
        return False


def _is_whole_member(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as stream:
        return is_whole(stream)


@contextmanager
def _atomic_output(path: Path, suffix: str, overwrite: bool) -> Iterator[Path]:
    """A temporary path with the same file name, in a folder next to ``path``, that replaces ``path`` on success."""
    if not path.name.endswith(suffix):
        raise OutputError(f"{path.name} does not end in {suffix}.", f"Choose a file name that ends in {suffix}.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists.", "Choose another name, or allow it to be overwritten.")
    try:
        # In a temporary folder rather than under another name, because a .mrb file contains its own name.
        with temporary_folder(path.name, path.parent) as folder:
            with _vtk_messages_off():
                yield folder / path.name
            (folder / path.name).replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {get_reason(error)}.", CHOOSE_ANOTHER_FOLDER) from error


@contextmanager
def _vtk_messages_off() -> Iterator[None]:
    """Suppress VTK's warnings, so that a failed write is reported only by the error that is raised."""
    before = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(before)


def create_temporary_folder() -> Path:
    """Create a temporary folder; the caller must remove it.

    This first removes folders left behind by a Slicer process that was killed, because they contain CTs. Raises
    OutputError if the folder cannot be created.
    """
    parent = slicer.app.temporaryPath
    try:
        clean(Path(parent))
        folder = make_partial_path(Path(parent) / "DCASegmentation")
        folder.mkdir(mode=0o700)
        return folder
    except OSError as error:
        raise OutputError(
            f"The temporary folder {parent} cannot be written to: {get_reason(error)}.",
            "Choose another folder under Edit / Application Settings / Modules / Temporary directory.",
        ) from None
