"""From evidence and findings to connected places on the model grid, scored and in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...imaging.grid import Grid
from ...organs import Organ
from ...review_file import KINDS, MOST_PLACES, Reason
from .components import Pieces, box_of, pieces_of_map
from .evidence import Bytes, Evidence
from .findings import Finding, Findings, several
from .normal_ranges import usual_ml
from .scoring import Scoring
from .words import network_reasons

NO_SUGGESTION = 255


@dataclass(frozen=True)
class Candidate:
    """A place on the model grid: ``number`` is its value in ``Candidates.map``; ``spot`` the voxel (z, y, x) in it
    to look at."""

    number: int
    organ: Organ
    score: float
    expected_wrong_ml: float
    spot: tuple[int, int, int]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Candidates:
    """Places by falling score. ``map`` (uint8, the model grid) holds their numbers, which are their ranks;
    ``suggestions`` (uint8) what anatomy wants in a voxel, 255 where it does not say."""

    places: tuple[Candidate, ...]
    map: Bytes
    suggestions: Bytes


def make_places(
    evidence: Evidence, findings: Findings, owners: dict[int, int], grid: Grid, scoring: Scoring, other_name: str
) -> Candidates:
    """Join suspicious voxels and findings of the same organ where they touch, score and order them.

    ``owners`` gives for each organ's label its expert: 1 head, 2 medium, 3 tail.
    """
    concern, risk, suggestions = _concerns(evidence, findings, scoring)
    pieces, count = pieces_of_map(concern)
    flat = pieces.ravel()
    first = _first_voxels(flat, count)
    size = np.bincount(flat, minlength=count + 1)
    wrong = np.bincount(flat, weights=risk.ravel(), minlength=count + 1) / 255 * grid.volume_ml_per_voxel
    highest = np.zeros(count + 1, np.uint8)
    np.maximum.at(highest, flat[flat > 0], evidence.risk.ravel()[flat > 0])
    found = _texts(findings.places, pieces, grid.volume_ml_per_voxel)

    scores: dict[int, float] = {}
    for piece in range(1, count + 1):
        large_enough = size[piece] * grid.volume_ml_per_voxel >= scoring.smallest_ml
        doubtful = large_enough and highest[piece] >= scoring.certain_enough * 255
        if not doubtful and piece not in found:
            continue
        organ = evidence.vocabulary.by_label[int(concern.flat[first[piece]])]
        score = wrong[piece] * (1 + scoring.organ_share / usual_ml(organ))
        scores[piece] = float(score * (scoring.unusual if organ.key in findings.unusual else 1.0))
    # Pieces are numbered by their first voxel, so a tie is decided by position, always the same way.
    ranked = sorted(scores, key=lambda piece: (-round(scores[piece], 6), piece))[:MOST_PLACES]

    numbers = np.zeros(count + 1, np.uint8)
    numbers[ranked] = np.arange(1, len(ranked) + 1, dtype=np.uint8)
    ranks = numbers[pieces]
    told = network_reasons(evidence, ranks, len(ranked), owners, other_name)
    places = []
    for number, piece in enumerate(ranked, start=1):
        organ = evidence.vocabulary.by_label[int(concern.flat[first[piece]])]
        reasons = sorted((*found.get(piece, ()), *told[number]), key=lambda reason: KINDS.index(reason.kind))
        ml = float(wrong[piece])
        spot = _spot(ranks == number, risk)
        places.append(Candidate(number, organ, scores[piece], ml, spot, tuple(reasons)))
    suggestions[ranks == 0] = NO_SUGGESTION
    return Candidates(tuple(places), ranks, suggestions)


def _concerns(evidence: Evidence, findings: Findings, scoring: Scoring) -> tuple[Bytes, Bytes, Bytes]:
    """For each voxel the organ it may be wrong about (0: none), its risk with the findings', what anatomy suggests."""
    suspicious = evidence.risk >= scoring.suspicious * 255
    organ = np.where(evidence.labels > 0, evidence.labels, evidence.alternative)
    concern = np.where(suspicious, organ, np.uint8(0)).astype(np.uint8)
    risk = evidence.risk.copy()
    suggestions = np.full(concern.shape, NO_SUGGESTION, np.uint8)
    # The most telling come last: theirs is the word where findings overlap.
    for finding in sorted(findings.places, key=lambda each: -KINDS.index(each.kind)):
        concern[finding.box][finding.mask] = finding.organ.label
        least = np.uint8(round(finding.risk * 255))
        risk[finding.box][finding.mask] = np.maximum(risk[finding.box][finding.mask], least)
        if finding.suggestion is not None:
            suggestions[finding.box][finding.mask] = finding.suggestion
    return concern, risk, suggestions


def _first_voxels(flat: Pieces, count: int) -> NDArray[np.intp]:
    """Index of a voxel of each piece."""
    first = np.zeros(count + 1, np.intp)
    position = np.flatnonzero(flat)
    # Assigned backwards, so that the first of each piece is the last to be written.
    first[flat[position][::-1]] = position[::-1]
    return first


def _texts(findings: list[Finding], pieces: Pieces, ml_per_voxel: float) -> dict[int, list[Reason]]:
    """The findings of each piece; a finding that several pieces share is told in the one that has most of it, and of
    several alike there the number and the ml."""
    found: dict[int, dict[str, list[Finding]]] = {}
    for finding in findings:
        inside = pieces[finding.box][finding.mask]
        if inside.any():
            piece = int(np.bincount(inside)[1:].argmax()) + 1
            found.setdefault(piece, {}).setdefault(finding.kind, []).append(finding)
    return {
        piece: [Reason(kind, several(alike, ml_per_voxel)) for kind, alike in kinds.items()]
        for piece, kinds in found.items()
    }


def _spot(place: NDArray[np.bool_], risk: Bytes) -> tuple[int, int, int]:
    """The voxel of ``place`` around which most of the risk lies, within two voxels."""
    box = box_of(place)
    assert box is not None
    inside = place[box]
    total = np.where(inside, risk[box], 0).astype(np.float64) + inside
    for axis in range(3):
        sums = np.cumsum(np.pad(total, [(3, 2) if each == axis else (0, 0) for each in range(3)]), axis=axis)
        length = sums.shape[axis]
        total = sums.take(range(5, length), axis=axis) - sums.take(range(length - 5), axis=axis)
    best = np.unravel_index(int(np.where(inside, np.round(total, 3), -1).argmax()), inside.shape)
    z, y, x = (int(index) + part.start for index, part in zip(best, box, strict=True))
    return z, y, x
