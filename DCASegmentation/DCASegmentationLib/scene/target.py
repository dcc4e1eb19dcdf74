"""A segmentation that is there already as the place for new organs: only what this program put there is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import slicer

from DCASegmentationLib.errors import UserError

# A tag, because IDs and names are the user's to change; it is saved with the segment.
_TAG = "DCASegmentation.Organ"
_BINARY_LABELMAP = "Binary labelmap"


def tag_organs(node: Any, segment_ids: Iterable[str]) -> None:
    """Mark segments of a vtkMRMLSegmentationNode as made by this program."""
    for segment_id in segment_ids:
        node.GetSegmentation().GetSegment(segment_id).SetTag(_TAG, "1")


def own_organs(node: Any) -> list[str]:
    """IDs of the segments that :func:`tag_organs` marked."""
    segmentation = node.GetSegmentation()
    return [each for each in segmentation.GetSegmentIDs() if segmentation.GetSegment(each).HasTag(_TAG)]


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


def replace_organs(node: Any, add: Callable[[Any], list[str]]) -> list[str]:
    """Remove the organs this program put into ``node`` and ``add`` new ones, as one change. Returns their IDs."""
    before = own_organs(node)
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
            slicer.mrmlScene.RemoveNode(each)
