"""The surfaces of segments for 3D views, computed one segment at a time, and written as STL files.

Slicer itself computes the surfaces of all segments at once, and again at every change of voxels.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer
import vtk

from dcaseg.errors import OutputError, reason_of
from dcaseg.imaging.writers import temporary_folder
from dcaseg.types import ProgressCallback
from DCASegmentationLib.scene.storage import CHOOSE_ANOTHER_FOLDER

_SURFACE, _LABEL_MAP = "Closed surface", "Binary labelmap"


def has_surfaces(segmentation: Any) -> bool:
    """Whether a vtkMRMLSegmentationNode is shown in 3D."""
    return bool(segmentation.GetSegmentation().ContainsRepresentation(_SURFACE))


def making_surfaces(segmentation: Any) -> Iterator[None]:
    """Compute the surfaces of all segments, yielding after each; they all appear after the last one."""
    content = segmentation.GetSegmentation()
    made = {}
    for segment_id in content.GetSegmentIDs():
        made[segment_id] = _surface_of(segmentation, segment_id)
        yield
    _put(segmentation, made)


def renewing_surfaces(segmentation: Any, segment_ids: Collection[str]) -> Iterator[None]:
    """Compute the surfaces of these segments again, yielding after each; does nothing if there are no surfaces."""
    for segment_id in segment_ids:
        if not has_surfaces(segmentation):
            return
        if segmentation.GetSegmentation().GetSegment(segment_id) is not None:
            _put(segmentation, {segment_id: _surface_of(segmentation, segment_id)})
        yield


@contextmanager
def surfaces_aside(segmentation: Any) -> Iterator[None]:
    """Within the context, voxels can change without computing surfaces; the old surfaces return afterward.

    Call :func:`renewing_surfaces` later to update them.
    """
    content = segmentation.GetSegmentation()
    kept = {}
    if has_surfaces(segmentation):
        for segment_id in content.GetSegmentIDs():
            kept[segment_id] = content.GetSegment(segment_id).GetRepresentation(_SURFACE)
            content.GetSegment(segment_id).RemoveRepresentation(_SURFACE)
    try:
        yield
    finally:
        segment_ids = content.GetSegmentIDs()
        # Slicer expects a surface in all segments or in none, so a segment added in the context gets an empty one.
        empty = {each: vtk.vtkPolyData() for each in segment_ids if kept and each not in kept}
        _put(segmentation, {**{each: surface for each, surface in kept.items() if each in segment_ids}, **empty})


def _put(segmentation: Any, surfaces: dict[str, Any]) -> None:
    content = segmentation.GetSegmentation()
    modification = segmentation.StartModify()
    try:
        for segment_id, surface in surfaces.items():
            segment = content.GetSegment(segment_id)
            if segment is not None and surface is not None:
                segment.RemoveRepresentation(_SURFACE)
                segment.AddRepresentation(_SURFACE, surface)
    finally:
        segmentation.EndModify(modification)


def _surface_of(segmentation: Any, segment_id: str) -> Any:
    """The current surface of a segment, by Slicer's own conversion in a separate segmentation node."""
    content = segmentation.GetSegmentation()
    segment = content.GetSegment(segment_id)
    surface = vtk.vtkPolyData()
    image = segment.GetRepresentation(_LABEL_MAP) if segment is not None else None
    if image is None or image.IsEmpty():
        return surface
    alone = slicer.vtkMRMLSegmentationNode()
    alone.GetSegmentation().CopyConversionParameters(content)
    copy = slicer.vtkSegment()
    copy.SetLabelValue(segment.GetLabelValue())
    copy.AddRepresentation(_LABEL_MAP, image)
    alone.GetSegmentation().AddSegment(copy, segment_id)
    slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentClosedSurfaceRepresentation(alone, segment_id, surface)
    return surface


_STL_HEADER, _STL_TRIANGLE = 84, 50  # bytes of a binary STL file: header with the count, and each triangle


def write_surfaces(segmentation: Any, folder: Path, progress: ProgressCallback | None = None) -> list[Path]:
    """Write one STL file per visible segment into ``folder``, in mm and LPS coordinates, as other programs expect.

    The files are named after the segmentation and the segment. Missing surfaces are computed one segment after another.
    Raises OutputError if a file of that name exists, if no segment is visible, or if the folder cannot be written to;
    then no file is left behind. Nothing is overwritten.
    """
    display, content = segmentation.GetDisplayNode(), segmentation.GetSegmentation()
    ids = [each for each in content.GetSegmentIDs() if display is None or display.GetSegmentVisibility(each)]
    if not ids:
        raise OutputError("No segment is visible, so there is nothing to save.", "Show the segments to save.")
    try:
        with temporary_folder("surfaces", folder) as unfinished:
            for number, segment_id in enumerate(ids):
                if progress:
                    progress(number / len(ids), f"Writing {content.GetSegment(segment_id).GetName()}")
                _write_one(segmentation, segment_id, str(unfinished))
            written = sorted(unfinished.iterdir())
            if len(written) != len(ids) or not all(_is_whole(path) for path in written):
                raise OutputError(f"The surfaces cannot be written to {folder}.", CHOOSE_ANOTHER_FOLDER)
            paths = [folder / path.name for path in written]
            if existing := [path.name for path in paths if path.exists()]:
                raise OutputError(f"{existing[0]} already exists in {folder}.", "Choose another folder.")
            for path, target in zip(written, paths, strict=True):
                path.rename(target)
    except OSError as error:
        raise OutputError(
            f"The surfaces cannot be written to {folder}: {reason_of(error)}.", CHOOSE_ANOTHER_FOLDER
        ) from error
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
    """Whether the file contains as many triangles as its header states; the writer reports no error on a full disk."""
    header = path.read_bytes()[:_STL_HEADER]
    if len(header) < _STL_HEADER:
        return False
    (triangles,) = struct.unpack("<I", header[80:84])
    return path.stat().st_size == _STL_HEADER + triangles * _STL_TRIANGLE
