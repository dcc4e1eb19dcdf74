"""What the review of a new result goes by, into the scene: the automatic labels, the places, what they could be."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from DCASegmentationLib.organs import Vocabulary
from DCASegmentationLib.review_file import Place, Point, Review
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.label_volumes import Box, add_label_volume, joined_box
from DCASegmentationLib.scene.organ_changes import NOTHING_KEPT, Kept
from DCASegmentationLib.scene.place_statuses import mark_kept
from DCASegmentationLib.scene.region import Region
from DCASegmentationLib.scene.review_record import Origin, ReviewState, write_origin, write_review, write_state
from DCASegmentationLib.scene.segment_voxels import segment_layers
from DCASegmentationLib.scene.segmentation import box_of_organs
from DCASegmentationLib.scene.transforms import parent_to_world


def without_kept(labels: np.ndarray, vocabulary: Vocabulary, segmentation: Any, kept: Kept, ct_node: Any) -> np.ndarray:
    """``labels`` (z, y, x) on the CT's grid without the organs ``kept`` and without what lies in their voxels now."""
    if not kept.organs:
        return labels
    dropped = [vocabulary.by_key[key].label for key in kept.organs if key in vocabulary.by_key]
    fresh = np.where(np.isin(labels, dropped), 0, labels).astype(labels.dtype)
    for layer in segment_layers(segmentation, ct_node):
        values = [value for value, segment_id in layer.segments.items() if segment_id in kept.segments]
        if values:
            fresh[layer.box][np.isin(layer.labels, values)] = 0
    return fresh


def show_review(
    nodes: CaseNodes,
    origin: Origin,
    region: Region,
    labels: np.ndarray,
    kept: Kept = NOTHING_KEPT,
    review: Review | None = None,
    places: np.ndarray | None = None,
    alternative: np.ndarray | None = None,
) -> None:
    """Keep the automatic ``labels``, and the list of places with what they need, in the scene.

    All arrays (z, y, x) lie on ``region`` of the grid of ``nodes.ct``. ``places`` holds ranks and ``alternative`` the
    labels with every suggestion taken (see ``review_file``); without a review there is nothing to check. What was
    decided of an earlier list is forgotten but for the organs ``kept``.
    """
    inner = box_of_organs(labels) if places is None else joined_box(box_of_organs(labels), box_of_organs(places))
    box = _moved(inner, region)
    name = nodes.segmentation.GetName()
    nodes.automatic = add_label_volume(labels[inner], box, nodes.ct, f"{name}: automatic")
    nodes.places = None
    if places is not None:
        nodes.places = add_label_volume(places[inner], box, nodes.ct, f"{name}: places to check")
    write_origin(nodes.segmentation, origin)
    if review is None or places is None or alternative is None:
        write_review(nodes.segmentation, None, {})
    else:
        suggestions = dict(_suggestions(review.places, places, alternative))
        write_review(nodes.segmentation, _before_transform(review, nodes.ct), suggestions)
    write_state(nodes.segmentation, ReviewState(absent=set(kept.removed)))
    mark_kept(nodes, kept.organs)


def _moved(box: Box, region: Region) -> Box:
    """A box of the region as one of the whole grid."""
    z, y, x = (slice(part.start + first, part.stop + first) for part, first in zip(box, region.first, strict=True))
    return z, y, x


def _suggestions(
    review: Collection[Place], places: np.ndarray, alternative: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for place in review:
        if place.alternative is not None:
            first, last = place.box_voxels
            box = tuple(slice(start, stop + 1) for start, stop in zip(reversed(first), reversed(last), strict=True))
            yield place.rank, alternative[box][places[box] == place.rank]


def _before_transform(review: Review, ct_node: Any) -> Review:
    """The review with positions before the transform that the CT is under: whatever happens to it, they follow."""
    from_world = np.linalg.inv(parent_to_world(ct_node))
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = to_lps @ from_world @ to_lps
    if np.array_equal(matrix, np.eye(4)):
        return review
    return replace(review, places=tuple(replace(place, position_mm=_at(matrix, place)) for place in review.places))


def _at(matrix: np.ndarray, place: Place) -> Point:
    x, y, z = (float(value) for value in (matrix @ [*place.position_mm, 1.0])[:3])
    return x, y, z
