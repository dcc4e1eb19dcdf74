"""What is known and decided about the places to check, written on the segmentation so that a saved scene keeps it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from DCASegmentationLib.errors import UserError
from DCASegmentationLib.organs import VOCABULARIES, Vocabulary
from DCASegmentationLib.review_file import Review

TO_CHECK, CORRECTED, ACCEPTED, SUGGESTION, FLAGGED = "to_check", "corrected", "accepted", "suggestion", "flagged"
"""What became of a place: nothing yet, edited by hand, right as it was, its suggestion taken, left to others."""

_LIST = "DCASegmentation.review"
_SUGGESTIONS = "DCASegmentation.review.suggestions"
_STATE = "DCASegmentation.review.state"
_ORIGIN = "DCASegmentation.origin"


@dataclass(frozen=True)
class Origin:
    """Where an automatic result comes from: the model and the SHA-256 of its weights, the name of its vocabulary, the
    date (ISO 8601), and the checksum of the CT (see ``ct_checksum``), empty where it is not known."""

    model: str
    sha256: str
    vocabulary: str
    date: str = ""
    ct_checksum: str = ""

    def organs(self) -> Vocabulary | None:
        """The vocabulary; None for one that this version does not know."""
        return VOCABULARIES.get(self.vocabulary)


@dataclass
class ReviewState:
    """What was decided, by rank of the place. ``before`` holds what an accepted suggestion has overwritten: for each
    segment ID which voxels of the place were in it, see :func:`pack`. ``ticked`` are the keys of organs that somebody
    says to have looked at as a whole, ``absent`` of those that somebody has looked for and not found."""

    statuses: dict[int, str] = field(default_factory=dict)
    before: dict[int, dict[str, str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    ticked: set[str] = field(default_factory=set)

    def status(self, rank: int) -> str:
        return self.statuses.get(rank, TO_CHECK)

    def set_status(self, rank: int, status: str) -> None:
        if status == TO_CHECK:
            self.statuses.pop(rank, None)
        else:
            self.statuses[rank] = status


def write_origin(segmentation: Any, origin: Origin) -> None:
    """Write on a vtkMRMLSegmentationNode where its organs come from."""
    segmentation.SetAttribute(_ORIGIN, json.dumps(vars(origin)))


def read_origin(segmentation: Any) -> Origin | None:
    """What :func:`write_origin` wrote; None where there is nothing, or nothing that can be read."""
    content = _json(segmentation, _ORIGIN)
    try:
        return Origin(**{name: str(value) for name, value in content.items()}) if content is not None else None
    except TypeError:
        return None


def write_review(segmentation: Any, review: Review | None, suggestions: Mapping[int, np.ndarray]) -> None:
    """Write a new list with the labels (uint8, in the order of the place's voxels) that each place could have instead.

    What was decided about an earlier list is forgotten. None removes the list.
    """
    for name in (_LIST, _SUGGESTIONS, _STATE):
        segmentation.RemoveAttribute(name)
    if review is not None:
        segmentation.SetAttribute(_LIST, json.dumps(review.to_json()))
        segmentation.SetAttribute(
            _SUGGESTIONS, json.dumps({str(rank): _packed(labels) for rank, labels in suggestions.items()})
        )


def read_review(segmentation: Any) -> Review | None:
    """The list; None where there is none, or none that can be read."""
    content = _json(segmentation, _LIST)
    try:
        return Review.from_json(content) if content is not None else None
    except UserError:
        return None


def read_suggestion(segmentation: Any, rank: int) -> np.ndarray | None:
    """The labels that the voxels of a place could have instead, None where nothing is suggested."""
    packed = (_json(segmentation, _SUGGESTIONS) or {}).get(str(rank))
    return None if packed is None else np.frombuffer(_unpacked(packed), np.uint8)


def write_state(segmentation: Any, state: ReviewState) -> None:
    content = {
        "statuses": {str(rank): status for rank, status in sorted(state.statuses.items())},
        "before": {str(rank): segments for rank, segments in sorted(state.before.items())},
        "absent": sorted(state.absent),
        "ticked": sorted(state.ticked),
    }
    segmentation.SetAttribute(_STATE, json.dumps(content))


def read_state(segmentation: Any) -> ReviewState:
    """What was decided; nothing yet where it cannot be read."""
    content = _json(segmentation, _STATE) or {}
    return ReviewState(
        {int(rank): str(status) for rank, status in content.get("statuses", {}).items()},
        {int(rank): dict(segments) for rank, segments in content.get("before", {}).items()},
        {str(key) for key in content.get("absent", ())},
        {str(key) for key in content.get("ticked", ())},
    )


def pack(mask: np.ndarray) -> str:
    """A mask (bool, one dimension) as text."""
    return _packed(np.packbits(mask))


def unpack(text: str, count: int) -> np.ndarray:
    """The mask of ``count`` voxels that :func:`pack` was given; all false for an empty text."""
    if not text:
        return np.zeros(count, bool)
    return np.unpackbits(np.frombuffer(_unpacked(text), np.uint8), count=count).astype(bool)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes())).decode("ascii")


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def _json(segmentation: Any, name: str) -> Any:
    text = segmentation.GetAttribute(name)
    try:
        content = json.loads(text) if text else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
