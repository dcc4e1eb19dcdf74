"""What became of each finding and of its organs, and the alternative of a finding, taken or taken back."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import slicer

from dcaseg.errors import UserError
from dcaseg.review.schema import Finding
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.finding_view import PlaceVoxels, members, set_members, voxels_of
from DCASegmentationLib.scene.organ_changes import changed_places, labels_by_segment, labels_now
from DCASegmentationLib.scene.review_record import (
    ACCEPTED,
    CORRECTED,
    FLAGGED,
    SUGGESTION,
    TO_CHECK,
    ReviewState,
    pack,
    read_origin,
    read_review,
    read_state,
    read_suggestion,
    unpack,
    write_state,
)
from DCASegmentationLib.scene.segmentation import add_empty_organ, organs_by_segment, tag_organs


def set_status(nodes: CaseNodes, rank: int, status: str) -> None:
    """Mark a place; the status of its organ's segment follows."""
    state = read_state(nodes.segmentation)
    state.set_status(rank, status)
    write_state(nodes.segmentation, state)
    _update_organs(nodes, state, {rank})


def follow_edits(nodes: CaseNodes) -> bool:
    """Mark places that were edited as corrected, and those where it was undone as to check again.

    Flagged ones stay flagged. Returns whether any status has changed.
    """
    review = read_review(nodes.segmentation)
    if review is None or nodes.automatic is None or nodes.places is None:
        return False
    state, changed = read_state(nodes.segmentation), changed_places(nodes)
    moved = set()
    for rank in (place.rank for place in review.findings):
        before = state.status(rank)
        after = _status_after_edits(nodes, state, rank, rank in changed)
        if after != before:
            state.set_status(rank, after)
            state.before.pop(rank, None)
            moved.add(rank)
    if moved:
        write_state(nodes.segmentation, state)
        _update_organs(nodes, state, moved)
    return bool(moved)


def _status_after_edits(nodes: CaseNodes, state: ReviewState, rank: int, is_changed: bool) -> str:
    before = state.status(rank)
    if before == FLAGGED:
        return FLAGGED
    if before == SUGGESTION:
        if _holds_suggestion(nodes, rank):
            return SUGGESTION
        if _is_as_before(nodes, state, rank):
            # Taken back by the Segment Editor's undo.
            return CORRECTED if is_changed else TO_CHECK
    if is_changed:
        return CORRECTED
    return ACCEPTED if before == ACCEPTED else TO_CHECK


def _holds_suggestion(nodes: CaseNodes, rank: int) -> bool:
    place, suggestion = voxels_of(nodes, rank), read_suggestion(nodes.segmentation, rank)
    if place is None or suggestion is None:
        return False
    return np.array_equal(labels_now(nodes)[place.box][place.mask], suggestion)


def _is_as_before(nodes: CaseNodes, state: ReviewState, rank: int) -> bool:
    place = voxels_of(nodes, rank)
    if place is None or rank not in state.before:
        return False
    kept = state.before[rank]
    try:
        return all(
            np.array_equal(inside, unpack(kept.get(segment_id, ""), place.count))
            for segment_id, inside in members(nodes, place).items()
        )
    except UserError:
        # What was kept is damaged.
        return False


def mark_kept(nodes: CaseNodes, organs: Collection[str]) -> None:
    """After a new run: the places of organs that were completed, or removed, before it need no second look."""
    review = read_review(nodes.segmentation)
    if review is None:
        return
    state = read_state(nodes.segmentation)
    segments = {key: segment_id for segment_id, key in organs_by_segment(nodes.segmentation).items()}
    done = {key for key in organs if key not in segments or _status_of(nodes, segments[key]) == _done()}
    for place in review.findings:
        if done.issuperset(organs_of(place)):
            state.set_status(place.rank, ACCEPTED)
    state.ticked |= done
    write_state(nodes.segmentation, state)
    follow_edits(nodes)


def organ_is_reviewed(nodes: CaseNodes, key: str) -> bool:
    """Whether somebody has looked at the whole organ: its segment is completed, or it is known to be absent."""
    for segment_id, each in organs_by_segment(nodes.segmentation).items():
        if each == key:
            return _status_of(nodes, segment_id) == _done()
    return key in read_state(nodes.segmentation).absent


def organ_progress(nodes: CaseNodes) -> dict[str, tuple[int, int]]:
    """For each organ's key how many of the findings that involve it are checked, and how many there are."""
    review, state = read_review(nodes.segmentation), read_state(nodes.segmentation)
    found: dict[str, tuple[int, int]] = {}
    for place in review.findings if review is not None else ():
        for key in organs_of(place):
            checked, total = found.get(key, (0, 0))
            found[key] = (checked + (state.status(place.rank) != TO_CHECK), total + 1)
    return found


def mark_organ(nodes: CaseNodes, key: str, is_reviewed: bool) -> None:
    """Say that somebody has, or has not, looked at the whole organ, present or absent."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    state = read_state(nodes.segmentation)
    state.absent.discard(key)
    (state.ticked.add if is_reviewed else state.ticked.discard)(key)
    segments = [each for each, organ in organs_by_segment(nodes.segmentation).items() if organ == key]
    if not segments and is_reviewed:
        state.absent.add(key)
    write_state(nodes.segmentation, state)
    for segment_id in segments:
        segment = nodes.segmentation.GetSegmentation().GetSegment(segment_id)
        logic.SetSegmentStatus(segment, logic.Completed if is_reviewed else logic.InProgress)


def _update_organs(nodes: CaseNodes, state: ReviewState, ranks: Collection[int]) -> None:
    """The organs of these places: flagged with any place flagged, completed with none left to check, or as ticked.

    A completed organ goes into the training set. So by its places an organ is completed only if it has places of its
    own, under whose name the user judged it, and if all others that it may reach into were judged, too.
    """
    review = read_review(nodes.segmentation)
    if review is None:
        return
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    organs = {key for place in review.findings if place.rank in ranks for key in organs_of(place)}
    segments = {key: segment_id for segment_id, key in organs_by_segment(nodes.segmentation).items()}
    for key in organs:
        statuses = [state.status(place.rank) for place in review.findings if key in organs_of(place)]
        was_named = any(place.organ == key for place in review.findings)
        if FLAGGED in statuses:
            status = logic.Flagged
        elif key in state.ticked or (was_named and TO_CHECK not in statuses):
            status = logic.Completed
        elif was_named and set(statuses) != {TO_CHECK}:
            status = logic.InProgress
        else:
            status = logic.NotStarted
        if key in segments:
            state.absent.discard(key)
            logic.SetSegmentStatus(nodes.segmentation.GetSegmentation().GetSegment(segments[key]), status)
        elif status == logic.Completed:
            state.absent.add(key)
        else:
            state.absent.discard(key)
    write_state(nodes.segmentation, state)


def organs_of(place: Finding) -> tuple[str, ...]:
    """The organ that the place is about, and those that a part of it might be instead."""
    return (place.organ, *place.others)


def _status_of(nodes: CaseNodes, segment_id: str) -> int:
    segment = nodes.segmentation.GetSegmentation().GetSegment(segment_id)
    return int(slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(segment))


def _done() -> int:
    return int(slicer.vtkSlicerSegmentationsModuleLogic.Completed)


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
