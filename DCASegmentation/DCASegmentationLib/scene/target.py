"""A segmentation that is there already as the place for new organs: only what this program put there is replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import slicer
import vtk

from DCASegmentationLib.errors import UserError

# A tag, because IDs and names are the user's to change; it is saved with the segment.
_TAG = "DCASegmentation.Organ"
_BINARY_LABELMAP = "Binary labelmap"


# What earlier versions wrote instead of the organ's key: then the segment's ID is the key.
_UNNAMED = "1"


def tag_organs(node: Any, organs: Mapping[str, str]) -> None:
    """Mark segments of a vtkMRMLSegmentationNode, by segment ID, as organs of this program: ``organs`` are keys."""
    for segment_id, key in organs.items():
        node.GetSegmentation().GetSegment(segment_id).SetTag(_TAG, key)


def own_organs(node: Any) -> list[str]:
    """IDs of the segments that :func:`tag_organs` marked."""
    segmentation = node.GetSegmentation()
    return [each for each in segmentation.GetSegmentIDs() if segmentation.GetSegment(each).HasTag(_TAG)]


def organs_by_segment(node: Any) -> dict[str, str]:
    """Organ key of each segment that :func:`tag_organs` marked, whatever its name is now."""
    found = {}
    for segment_id in own_organs(node):
        key = vtk.reference("")
        node.GetSegmentation().GetSegment(segment_id).GetTag(_TAG, key)
        found[segment_id] = segment_id if str(key) == _UNNAMED else str(key)
    return found


def require_target(node: Any, ct_node: Any) -> None:
    """Raises UserError unless the organs of ``ct_node`` can go into the vtkMRMLSegmentationNode ``node``."""
    name = node.GetName()
    if not node.IsA("vtkMRMLSegmentationNode"):
        raise UserError(f"{name} is no segmentation.", "Choose a segmentation, or a new one.")
    reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    if reference is not None and reference.GetID() != ct_node.GetID():
        raise UserError(
            f"{name} belongs to another CT ({reference.GetName()}).", "Choose a segmentation of this CT, or a new one."
        )
    segmentation = node.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0:
        return
    if segmentation.GetSourceRepresentationName() != _BINARY_LABELMAP:
        raise UserError(
            f"{name} is kept as {segmentation.GetSourceRepresentationName().lower()}, not as voxels.",
            "Make binary labelmap its source representation (module Segmentations), or choose a new one.",
        )
    if node.GetTransformNodeID() != ct_node.GetTransformNodeID():
        raise UserError(f"{name} is under another transform than the CT.", "Put both under the same transform.")


def replace_organs(node: Any, add: Callable[[Any], dict[str, str]], kept: Collection[str] = ()) -> dict[str, str]:
    """Remove the organs this program put into ``node`` but those ``kept`` (segment IDs), and ``add`` new ones.

    This is one change. Returns what ``add`` gives: the organ key of each new segment.
    """
    before = [each for each in own_organs(node) if each not in kept]
    old = [(each, node.GetSegmentation().GetSegment(each)) for each in before]
    modification = node.StartModify()
    try:
        for segment_id in before:
            node.GetSegmentation().RemoveSegment(segment_id)
        try:
            return add(node)
        except ValueError:
            for segment_id, segment in old:
                node.GetSegmentation().AddSegment(segment, segment_id)
            raise
    finally:
        node.EndModify(modification)


def remove_nodes(nodes: Iterable[Any]) -> None:
    """Remove volumes from the scene together with how they are displayed (legends included)."""
    for node in nodes:
        displays = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
        for each in [node, *displays]:
            # Slicer may have removed the display nodes along with their node.
            if each is not None and slicer.mrmlScene.IsNodePresent(each):
                slicer.mrmlScene.RemoveNode(each)
