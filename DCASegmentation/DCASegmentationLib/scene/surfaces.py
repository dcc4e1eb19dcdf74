"""The surfaces of segments for 3D views, made one segment at a time so that the window never stands.

Slicer makes those of all segments at once, and makes each anew at every change of voxels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import slicer
import vtk

_SURFACE, _LABEL_MAP = "Closed surface", "Binary labelmap"


def has_surfaces(segmentation: Any) -> bool:
    """Whether a vtkMRMLSegmentationNode is shown in 3D."""
    return bool(segmentation.GetSegmentation().ContainsRepresentation(_SURFACE))


def making_surfaces(segmentation: Any) -> Iterator[None]:
    """Make the surfaces of all segments, pausing after each; they appear together, after the last one."""
    content = segmentation.GetSegmentation()
    made = {}
    for segment_id in content.GetSegmentIDs():
        made[segment_id] = _surface_of(segmentation, segment_id)
        yield
    _put(segmentation, made)


def renewing_surfaces(segmentation: Any, segment_ids: Collection[str]) -> Iterator[None]:
    """Make the surfaces of these segments anew, pausing after each; nothing where there are no surfaces."""
    for segment_id in segment_ids:
        if not has_surfaces(segmentation):
            return
        if segmentation.GetSegmentation().GetSegment(segment_id) is not None:
            _put(segmentation, {segment_id: _surface_of(segmentation, segment_id)})
        yield


@contextmanager
def surfaces_aside(segmentation: Any) -> Iterator[None]:
    """Change voxels without making any surface anew: those of before stay until :func:`renewing_surfaces`."""
    content = segmentation.GetSegmentation()
    kept = {}
    if has_surfaces(segmentation):
        for segment_id in content.GetSegmentIDs():
            kept[segment_id] = content.GetSegment(segment_id).GetRepresentation(_SURFACE)
            content.GetSegment(segment_id).RemoveRepresentation(_SURFACE)
    try:
        yield
    finally:
        there = content.GetSegmentIDs()
        # A segment that was added meanwhile has none, and Slicer expects all or none to have one.
        empty = {each: vtk.vtkPolyData() for each in there if kept and each not in kept}
        _put(segmentation, {**{each: surface for each, surface in kept.items() if each in there}, **empty})


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
    """The surface of a segment as it is now: by Slicer's own conversion, in a segmentation of its own."""
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
