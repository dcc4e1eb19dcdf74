"""The review of a segmentation: ranked findings, and their file ``review.json`` (version 1).

Positions are in mm, LPS (x to the left, y to the back, z to the head; Slicer's RAS has x and y negated). Voxel boxes
are in the order (i, j, k) of the CT's grid and include their first and last voxel. The file refers to two images on the
CT's grid: ``review_places`` holds the rank of the finding in each of its voxels, 0 elsewhere; ``review_alternative`` is
the label map with all suggestions accepted, which differs from the labels only within findings.

A new optional field keeps the version number, because readers ignore unknown fields; any other change needs a new one.
Both Slicer's panel and the worker read the file, so this module imports only Python's standard library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, get_reason
from ..json_io import DataError, dump, load, read_json
from ..option_fields import make_option_metadata, option

FORMAT = "dca-review"
VERSION = 1
REVIEW = "review.json"
FINDING_RANKS = "review_places"
ALTERNATIVE = "review_alternative"

MAX_FINDINGS = 100

KINDS = (
    *("missing", "volume", "position", "island", "hole", "cut"),
    *("disagreement", "foreign_expert", "undecided", "uncertain"),
)
"""Kinds of reasons, the most important first."""

Point = tuple[float, float, float]
Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Reason:
    """Why a finding needs a look.

    ``kind`` is one of ``KINDS``, ``text`` a sentence that names the organ, ``organ`` the key of the organ. The key is
    empty in files of earlier versions; then it is that of the finding.
    """

    kind: str
    text: str
    organ: str = ""


@dataclass(frozen=True)
class Alternative:
    """The suggested correction of a finding: it writes ``labels`` (0 is background) to ``ml`` of the finding.

    ``source``: ``experts`` (stitched experts), ``decoder`` (aggregation decoder) or ``anatomy`` (islands removed, holes
    filled, and the other prediction of the network elsewhere in the finding).
    """

    source: str
    labels: tuple[int, ...]
    ml: float
    text: str


@dataclass(frozen=True)
class Finding:
    """A connected region that may be wrong, small enough to judge at a glance.

    ``rank``: 1 is reviewed first; ``score`` determines the order.
    ``organ``, ``label``, ``name``: the organ that the finding and all its reasons are about.
    ``others``: keys of organs that a part of the region might belong to instead.
    ``ml``: volume; ``expected_wrong_ml``: the volume expected to be wrong. The expectation was calibrated on synthetic
    people and may be too high or too low for other data.
    ``position_mm`` (LPS): the point to look at. ``box_mm`` (LPS) and ``box_voxels``: corners of the bounding box.
    ``alternative``: the suggested correction, None without one.
    """

    rank: int
    organ: str
    label: int
    name: str
    score: float
    expected_wrong_ml: float
    ml: float
    position_mm: Point = field(metadata=make_option_metadata(key="position_mm_lps"))
    box_mm: tuple[Point, Point] = field(metadata=make_option_metadata(key="box_mm_lps"))
    box_voxels: tuple[Voxel, Voxel]
    reasons: tuple[Reason, ...]
    alternative: Alternative | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrganNote:
    """Notes on an organ as a whole; ``ml`` is its volume."""

    organ: str
    label: int
    ml: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """The findings of a segmentation in order of rank, and notes on its organs.

    ``vocabulary`` is the name of the organ vocabulary, ``ct`` the geometry of the CT (size, spacing_mm, origin_mm,
    direction).
    """

    vocabulary: str
    ct: Mapping[str, Any]
    findings: tuple[Finding, ...] = option((), key="places")
    organs: tuple[OrganNote, ...] = ()

    def to_json(self, extension: str = ".nrrd") -> dict[str, Any]:
        """Return the content of ``review.json``; ``extension`` is that of the two images."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "vocabulary": self.vocabulary,
            "coordinates": "LPS, mm",
            "ct": dict(self.ct),
            "files": {"places": FINDING_RANKS + extension, "alternative": ALTERNATIVE + extension},
            "places": [_finding_to_json(finding) for finding in self.findings],
            "organs": [{**asdict(note), "notes": list(note.notes)} for note in self.organs],
        }

    @classmethod
    def from_json(cls, content: Any) -> Review:
        """Return the review from the content of ``review.json``. Raises UserError if it is not valid."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError("This file is not a list of findings.", f"Choose the {REVIEW} of a result folder.")
        if content.get("version") != VERSION:
            raise UserError(
                f"The list of findings has version {content.get('version')}, but this program reads version {VERSION}.",
                "Segment the CT again with this program, or use the program that wrote the list.",
            )
        if missing := [key for key in ("places", "organs") if key not in content]:
            raise UserError(f"The list of findings is damaged: {missing[0]} is missing.", "Segment the CT again.")
        try:
            return load(cls, content, ignore_unknown=True)
        except DataError as error:
            raise UserError(f"The list of findings is damaged: {error}.", "Segment the CT again.") from None


def read_review(path: Path) -> Review:
    """Read the review from the file ``path``. Raises UserError if the file is missing or not valid."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"The list of findings {path} does not exist.", "Segment with --review.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({get_reason(error)}).", "Segment the CT again.") from None
    return Review.from_json(content)


def _finding_to_json(finding: Finding) -> dict[str, Any]:
    # Convert tuples to lists, so that the content equals what is read back.
    return dict(json.loads(json.dumps(dump(finding))))
