"""The list of findings, as ``review.json`` holds it (version 1).

Positions are in mm, LPS (x to the left, y to the back, z to the head; Slicer's RAS has x and y negated). Voxel boxes
count in the order (i, j, k) of the CT's grid, first and last voxel included. Beside the list lie two images on the CT's
grid: in ``places`` each voxel holds the rank of its place, 0 for none, and ``alternative`` is the label map with every
suggestion accepted: it differs from the labels only within places. New optional fields keep the version, which readers
pass over; anything else needs a new number.

Read by the panel and the worker alike, so this file knows Python's standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..json_io import read_json

FORMAT = "dca-review"
VERSION = 1
REVIEW = "review.json"
PLACES = "review_places"
ALTERNATIVE = "review_alternative"

MAX_FINDINGS = 100

KINDS = (
    *("missing", "volume", "position", "island", "hole", "cut"),
    *("disagreement", "foreign_expert", "undecided", "uncertain"),
)
"""Kinds of reasons, the most telling first."""

Point = tuple[float, float, float]
Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Reason:
    """Why a place should be looked at: one of ``KINDS``, a sentence that names its organ, and that organ's key; the
    key is empty in files of earlier versions, where it is the place's own."""

    kind: str
    text: str
    organ: str = ""


@dataclass(frozen=True)
class Alternative:
    """What could stand in a place instead: ``labels`` it would write, 0 is background, into ``ml`` of the place.

    ``source``: ``experts`` (stitched experts), ``decoder`` (aggregation decoder) or ``anatomy`` (no piece apart and no
    hole; elsewhere in the place what the network's other prediction says).
    """

    source: str
    labels: tuple[int, ...]
    ml: float
    text: str


@dataclass(frozen=True)
class Finding:
    """A connected place that may be wrong, small enough to be looked at in one go; ``rank`` 1 comes first.

    ``organ``, ``label`` and ``name`` are the organ it is about, as are its reasons; ``others`` are the keys of organs
    that a part of it might be instead; ``ml`` its size, ``expected_wrong_ml`` how much of it is expected to be wrong,
    as was counted on synthetic people, which may over- or understate it elsewhere; ``score`` orders the places.
    ``position_mm`` (LPS) is the point in it to look at, ``box_mm`` and ``box_voxels`` the corners of the box around it.
    """

    rank: int
    organ: str
    label: int
    name: str
    score: float
    expected_wrong_ml: float
    ml: float
    position_mm: Point
    box_mm: tuple[Point, Point]
    box_voxels: tuple[Voxel, Voxel]
    reasons: tuple[Reason, ...]
    alternative: Alternative | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrganNote:
    """What is to be said of an organ as a whole."""

    organ: str
    label: int
    ml: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """The places of one segmentation in order of rank; ``ct`` is the geometry of its CT (see ``geometry``)."""

    vocabulary: str
    ct: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()
    organs: tuple[OrganNote, ...] = ()

    def to_json(self, extension: str = ".nrrd") -> dict[str, Any]:
        """The content of ``review.json``; ``extension`` is that of the two images."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "vocabulary": self.vocabulary,
            "coordinates": "LPS, mm",
            "ct": dict(self.ct),
            "files": {"places": PLACES + extension, "alternative": ALTERNATIVE + extension},
            "places": [_finding_to_json(finding) for finding in self.findings],
            "organs": [{**asdict(note), "notes": list(note.notes)} for note in self.organs],
        }

    @classmethod
    def from_json(cls, content: Any) -> Review:
        """The review that ``to_json`` wrote. Raises UserError for anything else."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError("This file is not a list of findings.", f"Give the {REVIEW} of a result.")
        if content.get("version") != VERSION:
            raise UserError(
                f"The list of findings is of version {content.get('version')}, this program reads {VERSION}.",
                "Segment the CT again with this program, or use the program that wrote it.",
            )
        try:
            return cls(
                str(content["vocabulary"]),
                dict(content["ct"]),
                tuple(_finding_from_json(finding) for finding in content["places"]),
                tuple(
                    OrganNote(str(note["organ"]), int(note["label"]), float(note["ml"]), tuple(map(str, note["notes"])))
                    for note in content["organs"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"The list of findings is damaged ({type(error).__name__}: {error}).", "Segment the CT again."
            ) from None


def read_review(path: Path) -> Review:
    """The review in the file ``path``. Raises UserError where there is none or it cannot be used."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"The list of findings {path} does not exist.", "Segment with --review.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Segment the CT again.") from None
    return Review.from_json(content)


def _finding_to_json(finding: Finding) -> dict[str, Any]:
    content = asdict(finding)
    content["position_mm_lps"] = content.pop("position_mm")
    content["box_mm_lps"] = content.pop("box_mm")
    # As JSON has it: lists, so that writing and reading change nothing.
    return dict(json.loads(json.dumps(content)))


def _finding_from_json(content: Mapping[str, Any]) -> Finding:
    low, high = content["box_mm_lps"]
    first, last = content["box_voxels"]
    alternative = content["alternative"]
    return Finding(
        rank=int(content["rank"]),
        organ=str(content["organ"]),
        label=int(content["label"]),
        name=str(content["name"]),
        score=float(content["score"]),
        expected_wrong_ml=float(content["expected_wrong_ml"]),
        ml=float(content["ml"]),
        position_mm=_point(content["position_mm_lps"]),
        box_mm=(_point(low), _point(high)),
        box_voxels=(_voxel(first), _voxel(last)),
        reasons=tuple(
            Reason(str(reason["kind"]), str(reason["text"]), str(reason.get("organ", "")))
            for reason in content["reasons"]
        ),
        alternative=None
        if alternative is None
        else Alternative(
            str(alternative["source"]),
            tuple(int(label) for label in alternative["labels"]),
            float(alternative["ml"]),
            str(alternative["text"]),
        ),
        others=tuple(str(key) for key in content.get("others", ())),
    )


def _point(values: Any) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _voxel(values: Any) -> Voxel:
    i, j, k = (int(value) for value in values)
    return i, j, k
