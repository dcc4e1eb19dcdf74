"""Taking what a place could be instead into the segmentation, and taking it back."""

from __future__ import annotations

import numpy as np
import slicer

from DCASegmentationLib.errors import UserError
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.organ_changes import labels_by_segment
from DCASegmentationLib.scene.place_statuses import follow_edits, set_status
from DCASegmentationLib.scene.place_voxels import PlaceVoxels, members, set_members, voxels_of
from DCASegmentationLib.scene.review_record import (
    SUGGESTION,
    TO_CHECK,
    pack,
    read_origin,
    read_state,
    read_suggestion,
    unpack,
    write_state,
)
from DCASegmentationLib.scene.segmentation import add_empty_organ
from DCASegmentationLib.scene.target import tag_organs

_REMEDY = "Segment the CT again."


def accept_suggestion(nodes: CaseNodes, rank: int) -> set[str]:
    """Write the suggested labels of a place into the segmentation; what was there is kept for :func:`take_back`.

    Returns the IDs of the segments that changed: see ``surfaces.renewing_surfaces``. Segments of other programs, and
    voxels outside of the place, are not touched. Raises UserError where there is no suggestion, or what it needs was
    deleted.
    """
    place, suggestion = _place(nodes, rank), read_suggestion(nodes.segmentation, rank)
    if suggestion is None or len(suggestion) != place.count:
        raise UserError("Nothing is suggested for this place.", "Edit it by hand.")
    before = members(nodes, place)
    kept = {segment_id: pack(inside) for segment_id, inside in before.items() if inside.any()}
    for label in np.unique(suggestion).tolist():
        if label and label not in labels_by_segment(nodes).values():
            # A segment that nobody had: without voxels before.
            kept[segment_for(nodes, label)] = ""
    labels = labels_by_segment(nodes)
    changed = set_members(nodes, place, {segment_id: suggestion == labels[segment_id] for segment_id in labels})
    state = read_state(nodes.segmentation)
    state.before[rank] = kept
    write_state(nodes.segmentation, state)
    set_status(nodes, rank, SUGGESTION)
    return changed


def take_back(nodes: CaseNodes, rank: int) -> set[str]:
    """Give the voxels of a place back to the segments they were in before its suggestion was accepted.

    Returns the IDs of the segments that changed: see ``surfaces.renewing_surfaces``. Raises UserError where no
    suggestion was accepted, or what it replaced cannot be read.
    """
    place, state = _place(nodes, rank), read_state(nodes.segmentation)
    if rank not in state.before:
        raise UserError("No suggestion was accepted for this place.", "Use the Segment Editor's undo.")
    before = state.before.pop(rank)
    inside = {segment_id: unpack(before.get(segment_id, ""), place.count) for segment_id in labels_by_segment(nodes)}
    write_state(nodes.segmentation, state)
    changed = set_members(nodes, place, inside)
    for segment_id in (each for each, packed in before.items() if not packed):
        if nodes.segmentation.GetSegmentation().GetSegment(segment_id) is not None and _is_empty(nodes, segment_id):
            nodes.segmentation.GetSegmentation().RemoveSegment(segment_id)
    set_status(nodes, rank, TO_CHECK)
    # It may have been corrected by hand before.
    follow_edits(nodes)
    return changed


def segment_for(nodes: CaseNodes, label: int) -> str:
    """The segment of the organ with this label, made without voxels where there is none."""
    for segment_id, each in labels_by_segment(nodes).items():
        if each == label:
            return segment_id
    origin = read_origin(nodes.segmentation)
    vocabulary = origin.organs() if origin is not None else None
    if vocabulary is None or label not in vocabulary.by_label:
        raise UserError("The organ is not known to this version.", _REMEDY)
    organ = vocabulary.by_label[label]
    segment_id = add_empty_organ(nodes.segmentation, organ)
    tag_organs(nodes.segmentation, {segment_id: organ.key})
    return segment_id


def _place(nodes: CaseNodes, rank: int) -> PlaceVoxels:
    place = voxels_of(nodes, rank)
    if place is None:
        raise UserError("The volume with the places to check was deleted.", _REMEDY)
    return place


def _is_empty(nodes: CaseNodes, segment_id: str) -> bool:
    image = slicer.vtkOrientedImageData()
    nodes.segmentation.GetBinaryLabelmapRepresentation(segment_id, image)
    scalars = image.GetPointData().GetScalars()
    return bool(image.IsEmpty() or scalars is None or scalars.GetRange()[1] == 0)
