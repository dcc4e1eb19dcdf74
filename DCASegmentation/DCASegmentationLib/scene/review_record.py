"""The review findings and the decisions on them, recorded on the segmentation node so that they are saved with it."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dcaseg.errors import UserError
from dcaseg.json_io import DataError, dump, load, parse_json
from dcaseg.organs import VOCABULARIES, Vocabulary
from dcaseg.review.schema import Finding, Point, Review

TO_CHECK, CORRECTED, ACCEPTED, SUGGESTION, FLAGGED = "to_check", "corrected", "accepted", "suggestion", "flagged"
"""The status of a finding: not checked, edited by hand, accepted as it is, suggestion accepted, left to others."""
_STATUSES = (TO_CHECK, CORRECTED, ACCEPTED, SUGGESTION, FLAGGED)

_LIST = "DCASegmentation.review"
_SUGGESTIONS = "DCASegmentation.review.suggestions"
_STATE = "DCASegmentation.review.state"
_ORIGIN = "DCASegmentation.origin"

_MAX_BYTES = 64 << 20  # a label for each voxel of the largest finding
_MAX_RECORD_CHARACTERS = 64 << 20  # characters

_log = logging.getLogger("DCASegmentationLib")


@dataclass(frozen=True)
class Origin:
    """Where an automatic result comes from.

    The name of the ``model``, the SHA-256 of its weights, the name of its ``vocabulary``, the ``date`` (ISO 8601), and
    the checksum of the CT (see ``ct_export.compute_ct_checksum``), each empty if unknown.
    """

    model: str
    sha256: str
    vocabulary: str
    date: str = ""
    ct_checksum: str = ""

    def get_vocabulary(self) -> Vocabulary | None:
        """The vocabulary; None if this version does not know it."""
        return VOCABULARIES.get(self.vocabulary)


@dataclass
class ReviewState:
    """The decisions of a review.

    ``statuses`` maps the rank of a finding to its status. ``before`` holds, by rank, what an accepted suggestion
    replaced: for each segment ID, which of the finding's voxels were in it (see :func:`pack`). ``ticked`` are the keys
    of organs marked as reviewed as a whole; ``absent`` are the keys of organs that were looked for and not found.
    ``visited`` are the ranks of the findings that the user went to.
    """

    statuses: dict[int, str] = field(default_factory=dict)
    before: dict[int, dict[str, str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    ticked: set[str] = field(default_factory=set)
    visited: set[int] = field(default_factory=set)

    def status(self, rank: int) -> str:
        """The status of the finding with this rank."""
        return self.statuses.get(rank, TO_CHECK)

    def is_checked(self, rank: int) -> bool:
        """Whether the finding is decided. A change counts only if the user went to the finding.

        Otherwise, smoothing all organs would check findings that nobody has looked at.
        """
        status = self.status(rank)
        return status != TO_CHECK and (status != CORRECTED or rank in self.visited)

    def set_status(self, rank: int, status: str) -> None:
        """Set the status of the finding with this rank."""
        if status == TO_CHECK:
            self.statuses.pop(rank, None)
        else:
            self.statuses[rank] = status


def write_origin(segmentation: Any, origin: Origin) -> None:
    """Record on a vtkMRMLSegmentationNode where its organs come from."""
    segmentation.SetAttribute(_ORIGIN, json.dumps(dump(origin)))


def read_origin(segmentation: Any) -> Origin | None:
    """What :func:`write_origin` recorded; None if it is missing or cannot be read."""
    content = _read_json(segmentation, _ORIGIN)
    try:
        return load(Origin, content, ignore_unknown=True) if content is not None else None
    except DataError:
        return None


def read_vocabulary(segmentation: Any) -> Vocabulary | None:
    """The vocabulary of a result's organs; None if it is not recorded or unknown to this version."""
    origin = read_origin(segmentation)
    return origin.get_vocabulary() if origin is not None else None


def write_review(segmentation: Any, review: Review | None, suggestions: Mapping[int, np.ndarray]) -> None:
    """Record a new review and remove all decisions of the previous one; None removes the review.

    ``suggestions`` maps the rank of a finding to its alternative labels (uint8, in the order of the finding's voxels).
    """
    for name in (_LIST, _SUGGESTIONS, _STATE):
        segmentation.RemoveAttribute(name)
    if review is not None:
        segmentation.SetAttribute(_LIST, json.dumps(review.to_json()))
        segmentation.SetAttribute(
            _SUGGESTIONS, json.dumps({str(rank): _encode_array(labels) for rank, labels in suggestions.items()})
        )


def read_review(segmentation: Any) -> Review | None:
    """The review; None if it is missing or cannot be read."""
    content = _read_json(segmentation, _LIST)
    try:
        return Review.from_json(content) if content is not None else None
    except UserError:
        return None


def move_findings(segmentation: Any, matrix: np.ndarray) -> None:
    """Move the positions of the findings by ``matrix`` (4, 4, RAS, mm), with all decisions unchanged."""
    review = read_review(segmentation)
    if review is not None:
        segmentation.SetAttribute(_LIST, json.dumps(transform_review(review, matrix).to_json()))


def transform_review(review: Review, matrix: np.ndarray) -> Review:
    """The review with the positions of its findings moved by ``matrix`` (4, 4, RAS, mm)."""
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    in_lps = to_lps @ matrix @ to_lps
    if np.array_equal(in_lps, np.eye(4)):
        return review
    return replace(
        review, findings=tuple(replace(each, position_mm=_transform_position(in_lps, each)) for each in review.findings)
    )


def _transform_position(matrix: np.ndarray, finding: Finding) -> Point:
    x, y, z = (float(value) for value in (matrix @ [*finding.position_mm, 1.0])[:3])
    return x, y, z


def read_suggestion(segmentation: Any, rank: int) -> np.ndarray | None:
    """The alternative labels of a finding's voxels; None if there is no suggestion or it is damaged."""
    packed = (_read_json(segmentation, _SUGGESTIONS) or {}).get(str(rank))
    try:
        return None if packed is None else np.frombuffer(_decode_bytes(packed), np.uint8)
    except ValueError as error:
        _log.warning("The suggestion for finding %d cannot be read and is ignored (%s).", rank, error)
        return None


def write_state(segmentation: Any, state: ReviewState) -> None:
    """Record the decisions of a review."""
    segmentation.SetAttribute(_STATE, json.dumps(dump(state), sort_keys=True))


def read_state(segmentation: Any) -> ReviewState:
    """The decisions of a review; an empty state if they are missing or cannot be read."""
    content = _read_json(segmentation, _STATE) or {}
    try:
        state = load(ReviewState, content, ignore_unknown=True)
    except DataError as error:
        _log.warning("The decisions of this review cannot be read and are ignored (%s).", error)
        return ReviewState()
    # A later version may have other statuses.
    state.statuses = {rank: status for rank, status in state.statuses.items() if status in _STATUSES}
    if "visited" not in content:
        # Earlier versions did not record it; the corrections made with them still count.
        state.visited = {rank for rank, status in state.statuses.items() if status == CORRECTED}
    return state


def pack(mask: np.ndarray) -> str:
    """Encode a mask (bool, one dimension) as text."""
    return _encode_array(np.packbits(mask))


def unpack(text: str, count: int) -> np.ndarray:
    """Decode a mask of ``count`` voxels from :func:`pack`; all False for an empty text.

    Raises UserError if the text is damaged.
    """
    if not text:
        return np.zeros(count, bool)
    try:
        bits = np.frombuffer(_decode_bytes(text, (count + 7) // 8), np.uint8)
        if len(bits) != (count + 7) // 8:
            raise ValueError("wrong number of voxels")
    except ValueError as error:
        raise UserError(
            f"The voxels that the suggestion replaced cannot be read ({error}).",
            "Correct them in the Segment Editor instead.",
        ) from None
    return np.unpackbits(bits, count=count).astype(bool)


def _encode_array(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes())).decode("ascii")


def _decode_bytes(text: object, max_bytes: int = _MAX_BYTES) -> bytes:
    """Decode bytes from :func:`_encode_array`.

    Raises ValueError if the text is damaged or holds more than ``max_bytes``.
    """
    if not isinstance(text, str):
        raise ValueError("it is not text")
    unpacker = zlib.decompressobj()
    try:
        # binascii.Error is a ValueError.
        content = unpacker.decompress(base64.b64decode(text, validate=True), max_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    # A few bytes can decompress to gigabytes.
    if len(content) > max_bytes or not unpacker.eof:
        raise ValueError("it is cut off, or larger than any finding")
    return content


def _read_json(segmentation: Any, name: str) -> Any:
    text = segmentation.GetAttribute(name)
    if not text:
        return None
    try:
        if len(text) > _MAX_RECORD_CHARACTERS:
            raise ValueError("it is larger than any review")
        content = parse_json(text)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        _log.warning("The attribute %s of the segmentation cannot be read and is ignored (%s).", name, error)
        return None
    return content
