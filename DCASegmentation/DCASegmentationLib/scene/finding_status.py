"""The status of findings and organs: set by the user, following edits, and with a suggestion accepted or undone."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import slicer

from dcaseg.errors import UserError
from dcaseg.review.schema import Finding, Review
from DCASegmentationLib.scene.case_record import CaseNodes, lacks_label_maps
from DCASegmentationLib.scene.finding_view import FindingVoxels, compute_segment_masks, get_finding_voxels, set_members
from DCASegmentationLib.scene.organ_changes import compute_finding_changes, get_current_labels, get_labels_by_segment
from DCASegmentationLib.scene.placement import note_grids, require_together
from DCASegmentationLib.scene.review_record import (
    ACCEPTED,
    CORRECTED,
    FLAGGED,
    SUGGESTION,
    TO_CHECK,
    ReviewState,
    pack,
    read_review,
    read_state,
    read_suggestion,
    read_vocabulary,
    unpack,
    write_state,
)
from DCASegmentationLib.scene.segmentation import add_empty_organ, get_organs_by_segment, require_voxels, tag_organs

# A finding that nobody has gone to counts as corrected if at least this share of its voxels differs from the automatic
# result. A stroke in a neighboring organ, or smoothing, also changes single voxels of such findings.
MIN_CHANGE = 0.1


def set_status(nodes: CaseNodes, rank: int, status: str) -> None:
    """Set the status of a finding, as a user does who looks at it, and update the status of its organs' segments."""
    state = read_state(nodes.segmentation)
    state.set_status(rank, status)
    state.visited.add(rank)
    write_state(nodes.segmentation, state)
    _update_organs(nodes, state, {rank})


def mark_visited(nodes: CaseNodes, rank: int) -> None:
    """Record that the user went to a finding; if it was changed, it now counts as checked."""
    state = read_state(nodes.segmentation)
    if rank in state.visited:
        return
    state.visited.add(rank)
    write_state(nodes.segmentation, state)
    if state.status(rank) == CORRECTED:
        _update_organs(nodes, state, {rank})


def follow_edits(nodes: CaseNodes) -> bool:
    """Mark edited findings as corrected, and findings whose edits were undone as to be checked again.

    Flagged findings stay flagged. Returns whether any status changed. Raises UserError if the segmentation is not
    stored as voxels, or if the volumes to compare with are not where it is (see ``placement.require_together``).
    """
    review = read_review(nodes.segmentation)
    if review is None or nodes.automatic is None or nodes.finding_ranks is None:
        return False
    require_voxels(nodes.segmentation)
    require_together(nodes)
    note_grids(nodes)
    now = get_current_labels(nodes)
    state, changed = read_state(nodes.segmentation), compute_finding_changes(nodes, now)
    moved = set()
    for rank in (finding.rank for finding in review.findings):
        before = state.status(rank)
        after = _compute_status(nodes, state, rank, changed.get(rank, 0.0), now)
        if after != before:
            state.set_status(rank, after)
            state.before.pop(rank, None)
            moved.add(rank)
    if moved:
        write_state(nodes.segmentation, state)
        _update_organs(nodes, state, moved)
    return bool(moved)


def _compute_status(nodes: CaseNodes, state: ReviewState, rank: int, share: float, now: np.ndarray) -> str:
    """The status of a finding in which ``share`` of the voxels differs; ``now`` is from ``get_current_labels``."""
    before = state.status(rank)
    if before == FLAGGED:
        return FLAGGED
    if before == SUGGESTION and _has_suggestion(nodes, rank, now):
        return SUGGESTION
    # A decision stays a correction as long as anything of it is left, unless the Segment Editor's undo took it back.
    was_decided = before == CORRECTED or (before == SUGGESTION and not _is_as_before(nodes, state, rank))
    # A user who went to the finding may correct few of its voxels.
    if share >= MIN_CHANGE or (share > 0 and (was_decided or rank in state.visited)):
        return CORRECTED
    return ACCEPTED if before == ACCEPTED else TO_CHECK


def _has_suggestion(nodes: CaseNodes, rank: int, now: np.ndarray) -> bool:
    voxels, suggestion = get_finding_voxels(nodes, rank), read_suggestion(nodes.segmentation, rank)
    if voxels is None or suggestion is None:
        return False
    return np.array_equal(now[voxels.box][voxels.mask], suggestion)


def _is_as_before(nodes: CaseNodes, state: ReviewState, rank: int) -> bool:
    finding = get_finding_voxels(nodes, rank)
    if finding is None or rank not in state.before:
        return False
    kept = state.before[rank]
    try:
        return all(
            np.array_equal(inside, unpack(kept.get(segment_id, ""), finding.count))
            for segment_id, inside in compute_segment_masks(nodes, finding).items()
        )
    except UserError:
        # The record is damaged.
        return False


def mark_kept(nodes: CaseNodes, organs: Collection[str]) -> None:
    """After a new run: accept the findings of organs that were completed or removed before it."""
    review = read_review(nodes.segmentation)
    if review is None:
        return
    state = read_state(nodes.segmentation)
    segments = {key: segment_id for segment_id, key in get_organs_by_segment(nodes.segmentation).items()}
    done = {
        key
        for key in organs
        if key not in segments or _get_segment_status(nodes, segments[key]) == _get_completed_status()
    }
    for finding in review.findings:
        # A limited run leaves decisions on the findings that stay.
        if state.status(finding.rank) == TO_CHECK and done.issuperset(get_organ_keys(finding)):
            state.set_status(finding.rank, ACCEPTED)
            state.visited.add(finding.rank)
    state.ticked |= done
    write_state(nodes.segmentation, state)
    follow_edits(nodes)


def is_organ_reviewed(nodes: CaseNodes, key: str) -> bool:
    """Whether the whole organ was reviewed: its segment is completed, or it is known to be absent."""
    for segment_id, each in get_organs_by_segment(nodes.segmentation).items():
        if each == key:
            return _get_segment_status(nodes, segment_id) == _get_completed_status()
    return key in read_state(nodes.segmentation).absent


def compute_organ_progress(nodes: CaseNodes) -> dict[str, tuple[int, int]]:
    """By organ key: how many of the findings that involve the organ are checked, and how many there are."""
    review, state = read_review(nodes.segmentation), read_state(nodes.segmentation)
    found: dict[str, tuple[int, int]] = {}
    for finding in review.findings if review is not None else ():
        for key in get_organ_keys(finding):
            checked, total = found.get(key, (0, 0))
            found[key] = (checked + state.is_checked(finding.rank), total + 1)
    return found


def mark_organ(nodes: CaseNodes, key: str, is_reviewed: bool) -> None:
    """Mark an organ, present or absent, as reviewed as a whole, or remove that mark."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    state = read_state(nodes.segmentation)
    state.absent.discard(key)
    (state.ticked.add if is_reviewed else state.ticked.discard)(key)
    segments = [each for each, organ in get_organs_by_segment(nodes.segmentation).items() if organ == key]
    if not segments and is_reviewed:
        state.absent.add(key)
    write_state(nodes.segmentation, state)
    for segment_id in segments:
        segment = nodes.segmentation.GetSegmentation().GetSegment(segment_id)
        logic.SetSegmentStatus(segment, logic.Completed if is_reviewed else logic.InProgress)


def _update_organs(nodes: CaseNodes, state: ReviewState, ranks: Collection[int]) -> None:
    """Update the status of the organs that these findings involve.

    An organ is flagged if any of its findings is flagged, and completed if the user marked it or if none of its
    findings is left to check. A completed organ goes into the training set. Its findings therefore complete it only if
    at least one of them is named after the organ, so that the user judged it under that name, and if all other findings
    that involve it have been checked too. A finding that was changed counts only if the user went to it.
    """
    review = read_review(nodes.segmentation)
    if review is not None:
        organs = {key for finding in review.findings if finding.rank in ranks for key in get_organ_keys(finding)}
        _set_organs(nodes, review, state, organs)


def restore_organs(nodes: CaseNodes) -> None:
    """After a new run: set the status of new segments from the decisions on findings that stayed."""
    review, state = read_review(nodes.segmentation), read_state(nodes.segmentation)
    if review is None or not state.statuses:
        return
    new = int(slicer.vtkSlicerSegmentationsModuleLogic.NotStarted)
    segments = get_organs_by_segment(nodes.segmentation)
    _set_organs(
        nodes, review, state, {key for each, key in segments.items() if _get_segment_status(nodes, each) == new}
    )


def _set_organs(nodes: CaseNodes, review: Review, state: ReviewState, organs: Collection[str]) -> None:
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segments = {key: segment_id for segment_id, key in get_organs_by_segment(nodes.segmentation).items()}
    for key in organs:
        involved = [finding.rank for finding in review.findings if key in get_organ_keys(finding)]
        statuses = [state.status(rank) for rank in involved]
        was_named = any(finding.organ == key for finding in review.findings)
        if FLAGGED in statuses:
            status = logic.Flagged
        elif key in state.ticked or (was_named and all(map(state.is_checked, involved))):
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


def get_organ_keys(finding: Finding) -> tuple[str, ...]:
    """The keys of the organ that the finding is about, and of those that a part of it might belong to instead."""
    return (finding.organ, *finding.others)


def _get_segment_status(nodes: CaseNodes, segment_id: str) -> int:
    segment = nodes.segmentation.GetSegmentation().GetSegment(segment_id)
    return int(slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(segment))


def _get_completed_status() -> int:
    return int(slicer.vtkSlicerSegmentationsModuleLogic.Completed)


_REMEDY = "Segment the CT again."


def accept_suggestion(nodes: CaseNodes, rank: int) -> set[str]:
    """Write the suggested labels of a finding into the segmentation and record what they replace.

    Segments of other programs and voxels outside the finding do not change; :func:`take_back` undoes the rest. Returns
    the IDs of the segments that changed (see ``surfaces.update_surfaces_in_steps``). Raises UserError if there is no
    suggestion, or if a volume that it needs was deleted or is not where the segmentation is.
    """
    finding, suggestion = _require_voxels(nodes, rank), read_suggestion(nodes.segmentation, rank)
    if suggestion is None or len(suggestion) != finding.count:
        raise UserError("There is no alternative for this finding.", "Correct it in the Segment Editor.")
    before = compute_segment_masks(nodes, finding)
    kept = {segment_id: pack(inside) for segment_id, inside in before.items() if inside.any()}
    for label in np.unique(suggestion).tolist():
        if label and label not in get_labels_by_segment(nodes).values():
            # The organ has no segment yet, so nothing was replaced.
            kept[get_or_add_segment(nodes, label)] = ""
    labels = get_labels_by_segment(nodes)
    changed = set_members(nodes, finding, {segment_id: suggestion == labels[segment_id] for segment_id in labels})
    state = read_state(nodes.segmentation)
    state.before[rank] = kept
    write_state(nodes.segmentation, state)
    set_status(nodes, rank, SUGGESTION)
    return changed


def take_back(nodes: CaseNodes, rank: int) -> set[str]:
    """Undo :func:`accept_suggestion`: return the voxels of a finding to their previous segments.

    Returns the IDs of the segments that changed (see ``surfaces.update_surfaces_in_steps``). Raises UserError if no
    suggestion was accepted, if the record of what it replaced cannot be read, or if the volume with the findings was
    deleted or is not where the segmentation is.
    """
    finding, state = _require_voxels(nodes, rank), read_state(nodes.segmentation)
    if rank not in state.before:
        raise UserError("No alternative was accepted for this finding.", "Use the Segment Editor's undo.")
    before = state.before.pop(rank)
    inside = {
        segment_id: unpack(before.get(segment_id, ""), finding.count) for segment_id in get_labels_by_segment(nodes)
    }
    write_state(nodes.segmentation, state)
    changed = set_members(nodes, finding, inside)
    for segment_id in (each for each, packed in before.items() if not packed):
        if nodes.segmentation.GetSegmentation().GetSegment(segment_id) is not None and _is_empty(nodes, segment_id):
            nodes.segmentation.GetSegmentation().RemoveSegment(segment_id)
    set_status(nodes, rank, TO_CHECK)
    # The finding may have been corrected by hand before the suggestion was accepted.
    follow_edits(nodes)
    return changed


def get_or_add_segment(nodes: CaseNodes, label: int) -> str:
    """The ID of the segment of the organ with this label; an empty segment is added if there is none.

    Raises UserError if the label is unknown.
    """
    for segment_id, each in get_labels_by_segment(nodes).items():
        if each == label:
            return segment_id
    vocabulary = read_vocabulary(nodes.segmentation)
    if vocabulary is None or label not in vocabulary.by_label:
        raise UserError("This version does not support the organ.", _REMEDY)
    organ = vocabulary.by_label[label]
    segment_id = add_empty_organ(nodes.segmentation, organ)
    tag_organs(nodes.segmentation, {segment_id: organ.key})
    return segment_id


def _require_voxels(nodes: CaseNodes, rank: int) -> FindingVoxels:
    voxels = get_finding_voxels(nodes, rank)
    if voxels is None:
        raise create_missing_findings_error(nodes)
    require_voxels(nodes.segmentation)
    require_together(nodes)
    return voxels


def create_missing_findings_error(nodes: CaseNodes) -> UserError:
    """Why the voxels of the findings are missing, and what to do."""
    if lacks_label_maps(nodes.segmentation):
        return UserError(
            "The scene was saved without the automatic result, so the review cannot continue.",
            "Segment the CT again; corrected organs are kept. Slicer 5.10 saves a review only as .mrb, not as .mrml.",
        )
    return UserError("The volume with the findings was deleted.", _REMEDY)


def _is_empty(nodes: CaseNodes, segment_id: str) -> bool:
    image = slicer.vtkOrientedImageData()
    nodes.segmentation.GetBinaryLabelmapRepresentation(segment_id, image)
    scalars = image.GetPointData().GetScalars()
    return bool(image.IsEmpty() or scalars is None or scalars.GetRange()[1] == 0)
