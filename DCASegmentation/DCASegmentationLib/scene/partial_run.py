"""A run limited to some organs or to a region: what stays of the earlier result in the same segmentation.

Organs that were not requested stay, and outside the region nothing changes. So do the findings about them, with all
decisions: the automatic result and the review of the new run are joined with those of the earlier one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import slicer.util

from dcaseg.errors import UserError
from dcaseg.organs import Vocabulary
from dcaseg.review.schema import Finding, Review
from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import read_case_nodes
from DCASegmentationLib.scene.ct_export import Region
from DCASegmentationLib.scene.review_record import (
    ReviewState,
    pack,
    read_review,
    read_state,
    read_suggestion,
    read_vocabulary,
    unpack,
)
from DCASegmentationLib.scene.segmentation import find_unique_labels, get_layers, get_organs_by_segment
from DCASegmentationLib.scene.volumes import find_box_in_grid


def get_requested_organs(organs: Collection[str] | None, vocabulary: Vocabulary) -> frozenset[str]:
    """The keys of the organs that a run segments; ``organs`` are keys or names, None for all of the model."""
    return frozenset(vocabulary.by_key if organs is None else (vocabulary.find(name).key for name in organs))


def is_whole(region: Region, ct: Any) -> bool:
    """Whether ``region`` of the CT's grid is all of it."""
    return region == Region.from_size(ct.GetImageData().GetDimensions()[::-1])


def find_organs_in_region(segmentation: Any, ct: Any, region: Region) -> set[str]:
    """The keys of this module's organs in a vtkMRMLSegmentationNode that have voxels in ``region`` of the CT's grid."""
    organs = get_organs_by_segment(segmentation)
    found = set()
    for layer in get_layers(segmentation, ct):
        whole = zip(layer.box, region.slices, strict=True)
        part = tuple(slice(max(b.start, r.start) - b.start, max(min(b.stop, r.stop) - b.start, 0)) for b, r in whole)
        for value in find_unique_labels(layer.labels[part]):
            if layer.segments.get(value) in organs:
                found.add(organs[layer.segments[value]])
    return found


def find_untouched_segments(
    segmentation: Any, ct: Any, requested: Collection[str], region: Region, found: Collection[str]
) -> dict[str, str]:
    """The segments of this module that a run does not replace: organ key by segment ID.

    ``requested`` and ``found`` are the keys of the organs that it was to segment, and that it did find in ``region``.
    """
    organs = get_organs_by_segment(segmentation)
    reached = set(organs.values()) & set(requested)
    if not is_whole(region, ct):
        reached &= find_organs_in_region(segmentation, ct, region) | set(found)
    return {segment_id: key for segment_id, key in organs.items() if key not in reached}


def merge_labels_outside_region(
    labels: np.ndarray, segmentation: Any, ct: Any, region: Region, organs: Mapping[str, str], vocabulary: Vocabulary
) -> np.ndarray:
    """``labels`` (z, y, x) on the CT's grid, with the current voxels of ``organs`` outside ``region``.

    ``organs`` are segments to replace: organ key by segment ID.
    """
    joined = np.zeros_like(labels)
    for layer in get_layers(segmentation, ct):
        table = np.zeros(max([int(layer.labels.max(initial=0)), *layer.segments]) + 1, labels.dtype)
        for value, segment_id in layer.segments.items():
            if (key := organs.get(segment_id)) in vocabulary.by_key:
                table[value] = vocabulary.by_key[key].label
        current = table[layer.labels]
        np.copyto(joined[layer.box], current, where=current > 0)
    joined[region.slices] = labels[region.slices]
    return joined


@dataclass(frozen=True)
class ReviewedResult:
    """The automatic ``labels`` of a result (z, y, x, on the grid of the CT), and what the review found in them.

    ``ranks`` holds the rank of the finding at each voxel; it and ``review`` are None without a review. ``suggestions``
    maps ranks to alternative labels, in the order of the finding's voxels.
    """

    labels: np.ndarray
    review: Review | None = None
    ranks: np.ndarray | None = None
    suggestions: Mapping[int, np.ndarray] = field(default_factory=dict)
    state: ReviewState = field(default_factory=ReviewState)


@dataclass(frozen=True)
class EarlierReview:
    """The automatic result and the review of a case before another run; arrays cover ``box`` of the CT's grid."""

    vocabulary: Vocabulary
    box: Box
    reviewed: ReviewedResult


def get_earlier_review(segmentation: Any | None, ct: Any) -> EarlierReview | None:
    """What a case has before another run; None if there is no automatic result on the grid of this CT."""
    nodes = read_case_nodes(segmentation)
    vocabulary = read_vocabulary(segmentation) if nodes is not None else None
    if nodes is None or nodes.automatic is None or vocabulary is None or nodes.ct is not ct:
        return None
    box = find_box_in_grid(nodes.automatic, ct)
    if box is None:
        return None
    labels = slicer.util.arrayFromVolume(nodes.automatic).copy()
    ranks = None if nodes.finding_ranks is None else slicer.util.arrayFromVolume(nodes.finding_ranks).copy()
    review = read_review(nodes.segmentation) if ranks is not None and ranks.shape == labels.shape else None
    findings = review.findings if review is not None else ()
    suggestions = {
        finding.rank: labels_of_finding
        for finding in findings
        if (labels_of_finding := read_suggestion(nodes.segmentation, finding.rank)) is not None
    }
    state = read_state(nodes.segmentation)
    return EarlierReview(vocabulary, box, ReviewedResult(labels, review, ranks, suggestions, state))


def merge_reviews(
    new: ReviewedResult, earlier: EarlierReview, vocabulary: Vocabulary, requested: Collection[str], region: Region
) -> ReviewedResult:
    """The review of a limited run joined with what stays of the earlier one; ``new`` covers the whole grid of the CT.

    A finding stays if its organ was not requested, or if all of it lies outside ``region``. Findings get new ranks,
    in the order of their scores.
    """
    before = earlier.reviewed
    labels = _merge_labels(new, earlier, vocabulary, requested, region)
    state = ReviewState(absent=set(new.state.absent), ticked=set(new.state.ticked))
    state.absent |= {key for key in before.state.absent if key not in requested}
    state.ticked |= {key for key in before.state.ticked if key not in requested}
    staying = _select_kept_findings(new, earlier, requested, region)
    fresh = new.review.findings if new.review is not None else ()
    if not staying:
        return replace(new, labels=labels, state=state)
    order = sorted([(finding, False) for finding in fresh] + [(each, True) for each in staying],
                   key=lambda item: -item[0].score)  # fmt: skip
    ranks = np.zeros(labels.shape, np.uint8 if len(order) <= np.iinfo(np.uint8).max else np.uint16)
    findings, suggestions = [], {}
    for rank, (finding, is_earlier) in enumerate(order, start=1):
        findings.append(replace(finding, rank=rank))
        source = before if is_earlier else new
        assert source.ranks is not None
        mask = source.ranks == finding.rank
        free = np.ones(np.count_nonzero(mask), bool)
        if is_earlier and new.ranks is not None:
            # A voxel has one finding only; the new one counts.
            free = new.ranks[earlier.box][mask] == 0
            mask[mask] = free
        (ranks[earlier.box] if is_earlier else ranks)[mask] = rank
        suggestion = source.suggestions.get(finding.rank)
        if suggestion is not None and len(suggestion) == len(free):
            suggestions[rank] = _map_labels(
                suggestion[free], earlier.vocabulary if is_earlier else vocabulary, vocabulary
            )
        if is_earlier:
            _take_decision(before.state, finding.rank, state, rank, free)
    source_review = new.review or before.review
    assert source_review is not None
    notes = [] if before.review is None else [each for each in before.review.organs if each.organ not in requested]
    notes += new.review.organs if new.review is not None else ()
    review = Review(vocabulary.name, source_review.ct, tuple(findings), tuple(notes))
    return ReviewedResult(labels, review, ranks, suggestions, state)


def _merge_labels(
    new: ReviewedResult, earlier: EarlierReview, vocabulary: Vocabulary, requested: Collection[str], region: Region
) -> np.ndarray:
    automatic = earlier.reviewed.labels
    joined = np.zeros_like(new.labels)
    joined[earlier.box] = _map_labels(automatic, earlier.vocabulary, vocabulary)
    replaced = [vocabulary.by_key[key].label for key in requested if key in vocabulary.by_key]
    inside, computed = joined[region.slices], new.labels[region.slices]
    inside[np.isin(inside, replaced)] = 0
    np.copyto(inside, computed, where=computed > 0)
    return joined


def _map_labels(labels: np.ndarray, source: Vocabulary, target: Vocabulary) -> np.ndarray:
    """Labels of one vocabulary as those of another, by organ; 0 for organs that it lacks."""
    table = np.zeros(max(len(source), int(labels.max(initial=0))) + 1, np.uint8)
    for organ in source:
        if organ.key in target.by_key:
            table[organ.label] = target.by_key[organ.key].label
    return np.asarray(table[labels])


def _select_kept_findings(
    new: ReviewedResult, earlier: EarlierReview, requested: Collection[str], region: Region
) -> list[Finding]:
    before = earlier.reviewed
    if before.review is None or before.ranks is None:
        return []
    z, y, x = (
        slice(max(part.start - box.start, 0), max(part.stop - box.start, 0))
        for part, box in zip(region.slices, earlier.box, strict=True)
    )
    inside = set(find_unique_labels(before.ranks[z, y, x]))
    free = before.ranks if new.ranks is None else np.where(new.ranks[earlier.box] > 0, 0, before.ranks)
    left = set(find_unique_labels(free))
    return [
        finding
        for finding in before.review.findings
        if finding.rank in left and (finding.organ not in requested or finding.rank not in inside)
    ]


def _take_decision(source: ReviewState, before: int, target: ReviewState, rank: int, free: np.ndarray) -> None:
    """Copy the decision on a finding, which keeps those of its voxels that are ``free``, to its new rank."""
    target.set_status(rank, source.status(before))
    if before in source.visited:
        target.visited.add(rank)
    if before not in source.before:
        return
    try:
        masks = {key: unpack(text, len(free)) for key, text in source.before[before].items()}
    except UserError:
        # The record is damaged.
        return
    replaced = source.before[before]
    target.before[rank] = {key: pack(mask[free]) if replaced[key] else "" for key, mask in masks.items()}
