"""The surfaces of segments as STL files, written by Slicer's own logic."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk

from DCASegmentationLib.errors import OutputError
from DCASegmentationLib.imaging.writing import temporary_folder

Progress = Callable[[float, str], None]

_REMEDY = "Choose an existing folder you may write to, with free space."
_STL_HEADER, _STL_TRIANGLE = 84, 50  # bytes of a binary STL file: header with the count, and each triangle


def write_surfaces(segmentation: Any, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Write one STL file per visible segment into ``folder``, in mm and in LPS as other programs expect it.

    The files are named after the segmentation and the segment; surfaces that are missing are computed for it, one
    segment after another. Nothing is overwritten: raises OutputError when a file of that name exists, when no segment
    is visible or when the folder cannot be written to, and then no file is left behind.
    """
    display, content = segmentation.GetDisplayNode(), segmentation.GetSegmentation()
    ids = [each for each in content.GetSegmentIDs() if display is None or display.GetSegmentVisibility(each)]
    if not ids:
        raise OutputError("No segment is visible, so there is nothing to write.", "Show the segments to write.")
    try:
        with temporary_folder("surfaces", folder) as unfinished:
            for number, segment_id in enumerate(ids):
                if progress:
                    progress(number / len(ids), f"Writing {content.GetSegment(segment_id).GetName()}")
                _write_one(segmentation, segment_id, str(unfinished))
            written = sorted(unfinished.iterdir())
            if len(written) != len(ids) or not all(_is_whole(path) for path in written):
                raise OutputError(f"The surfaces cannot be written to {folder}.", _REMEDY)
            paths = [folder / path.name for path in written]
            if there := [path.name for path in paths if path.exists()]:
                raise OutputError(f"{there[0]} exists already in {folder}.", "Choose another folder.")
            for path, target in zip(written, paths, strict=True):
                path.rename(target)
    except OSError as error:
        raise OutputError(f"The surfaces cannot be written to {folder}: {error.strerror or error}.", _REMEDY) from error
    if progress:
        progress(1.0, "Surfaces written")
    return paths


def _write_one(segmentation: Any, segment_id: str, folder: str) -> None:
    ids = vtk.vtkStringArray()
    ids.InsertNextValue(segment_id)
    slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsClosedSurfaceRepresentationToFiles(
        folder, segmentation, ids, "STL", True, 1.0, False
    )


def _is_whole(path: Path) -> bool:
    """Whether the file has all the triangles it announces: the writer says nothing when the disk is full."""
    header = path.read_bytes()[:_STL_HEADER]
    if len(header) < _STL_HEADER:
        return False
    (triangles,) = struct.unpack("<I", header[80:84])
    return path.stat().st_size == _STL_HEADER + triangles * _STL_TRIANGLE
