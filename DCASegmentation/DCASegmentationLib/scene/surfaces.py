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

from dcaseg.errors import OutputError, get_reason
from dcaseg.imaging.writers import temporary_folder
from dcaseg.types import ProgressCallback
from DCASegmentationLib.scene.storage import CHOOSE_ANOTHER_FOLDER, sanitize_file_name

_SURFACE, _LABEL_MAP = "Closed surface", "Binary labelmap"


def has_surfaces(segmentation: Any) -> bool:
    """Whether a vtkMRMLSegmentationNode is shown in 3D."""
    return bool(segmentation.GetSegmentation().ContainsRepresentation(_SURFACE))


def compute_surfaces_in_steps(segmentation: Any) -> Iterator[None]:
    """Compute the surfaces of all segments, yielding after each; they all appear after the last one.

    Segments that are edited meanwhile are computed again.
    """
    content = segmentation.GetSegmentation()
    made: dict[str, Any] = {}
    times: dict[str, int] = {}
    while outdated := [each for each in content.GetSegmentIDs() if times.get(each) != _get_mtime(segmentation, each)]:
        segment_id = outdated[0]
        times[segment_id] = _get_mtime(segmentation, segment_id)
        made[segment_id] = _compute_surface(segmentation, segment_id)
        yield
    _put(segmentation, made)


def _get_mtime(segmentation: Any, segment_id: str) -> int:
    """When the voxels of a segment changed last; -1 if it has none."""
    image = segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation(_LABEL_MAP)
    return -1 if image is None else int(image.GetMTime())


def update_surfaces_in_steps(segmentation: Any, segment_ids: Collection[str]) -> Iterator[None]:
    """Compute the surfaces of these segments again, yielding after each; does nothing if there are no surfaces."""
    for segment_id in segment_ids:
        if not has_surfaces(segmentation):
            return
        if segmentation.GetSegmentation().GetSegment(segment_id) is not None:
            _put(segmentation, {segment_id: _compute_surface(segmentation, segment_id)})
        yield


@contextmanager
def without_surfaces(segmentation: Any) -> Iterator[None]:
    """Within the context, voxels can change without computing surfaces; the old surfaces return afterward.

    Call :func:`update_surfaces_in_steps` later to update them.
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


def _compute_surface(segmentation: Any, segment_id: str) -> Any:
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

    The files are named after the segmentation and the segment, with characters replaced that a file name cannot have,
    and with a number if two segments have the same name. Missing surfaces are computed one segment after another.
    Raises OutputError if a file of that name exists, if no segment is visible, or if the folder cannot be written to;
    then no file is left behind. Nothing is overwritten.
    """
    display, content = segmentation.GetDisplayNode(), segmentation.GetSegmentation()
    ids = [each for each in content.GetSegmentIDs() if display is None or display.GetSegmentVisibility(each)]
    if not ids:
        raise OutputError("No segment is visible, so there is nothing to save.", "Show the segments to save.")
    names = _create_file_names(segmentation, ids)
    try:
        with temporary_folder("surfaces", folder) as unfinished:
            for number, segment_id in enumerate(ids):
                name = content.GetSegment(segment_id).GetName()
                if progress:
                    progress(number / len(ids), f"Writing {name}")
                path = unfinished / names[segment_id]
                _write_one(segmentation, segment_id, path)
                if not _is_whole(path):
                    raise OutputError(
                        f"The surface of {name} cannot be written to {folder / path.name}.", CHOOSE_ANOTHER_FOLDER
                    )
            written = sorted(unfinished.iterdir())
            paths = [folder / path.name for path in written]
            if existing := [path.name for path in paths if path.exists()]:
                raise OutputError(f"{existing[0]} already exists in {folder}.", "Choose another folder.")
            for path, target in zip(written, paths, strict=True):
                path.rename(target)
    except OSError as error:
        raise OutputError(
            f"The surfaces cannot be written to {folder}: {get_reason(error)}.", CHOOSE_ANOTHER_FOLDER
        ) from error
    if progress:
        progress(1.0, "Surfaces written")
    return paths


def _create_file_names(segmentation: Any, segment_ids: Collection[str]) -> dict[str, str]:
    """A file name for each segment; all are different, also where upper and lower case do not differ."""
    content = segmentation.GetSegmentation()
    names: dict[str, str] = {}
    taken: set[str] = set()
    for segment_id in segment_ids:
        base = name = sanitize_file_name(f"{segmentation.GetName()}_{content.GetSegment(segment_id).GetName()}")
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{base} ({number})"
        taken.add(name.casefold())
        names[segment_id] = f"{name}.stl"
    return names


def _write_one(segmentation: Any, segment_id: str, path: Path) -> None:
    """Write the file as Slicer's own export does, which takes its name from the segment, whatever that contains."""
    surface = vtk.vtkPolyData()
    slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentClosedSurfaceRepresentation(segmentation, segment_id, surface)
    to_lps = vtk.vtkTransform()
    to_lps.Scale(-1.0, -1.0, 1.0)
    turned, triangles, writer = vtk.vtkTransformPolyDataFilter(), vtk.vtkTriangleFilter(), vtk.vtkSTLWriter()
    turned.SetTransform(to_lps)
    turned.SetInputData(surface)
    triangles.SetInputConnection(turned.GetOutputPort())
    writer.SetInputConnection(triangles.GetOutputPort())
    writer.SetFileTypeToBinary()
    writer.SetHeader("3D Slicer output. SPACE=LPS")
    writer.SetFileName(str(path))
    writer.Write()


def _is_whole(path: Path) -> bool:
    """Whether the file contains as many triangles as its header states; the writer reports no error on a full disk."""
    if not path.exists():
        return False
    header = path.read_bytes()[:_STL_HEADER]
    if len(header) < _STL_HEADER:
        return False
    (triangles,) = struct.unpack("<I", header[80:84])
    return path.stat().st_size == _STL_HEADER + triangles * _STL_TRIANGLE
