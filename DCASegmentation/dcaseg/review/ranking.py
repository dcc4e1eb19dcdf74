"""From evidence and anatomy to a ranked list of findings, most likely wrong first, with reasons in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..inference.maps import EXPERTS
from ..organs import Organ
from ..types import Box
from .evidence import Bytes, Evidence
from .findings import AnatomicalFinding, AnatomicalFindings, several
from .normal_ranges import usual_ml
from .regions import Scoring, box_of, error_probability_of, regions
from .schema import KINDS, MAX_FINDINGS, Reason

# Shares of a place from which a reason is told.
_DISAGREES = 0.3
_ATTENTION = 0.5
# Risk from which a voxel is in doubt.
_IN_DOUBT = 0.12
# Attention that does this everywhere in the scan's organs says nothing about one place.
_MORE_THAN_USUAL = 1.25
_UNDECIDED = 0.5
"""Attention of the deciding expert below which nobody has decided."""


def network_reasons(
    evidence: Evidence,
    ranks: Bytes,
    organs: dict[int, tuple[Organ, ...]],
    owners: dict[int, int],
    other_name: str,
    unusual_border: float,
) -> dict[int, list[Reason]]:
    """For each place of ``ranks``, 1 to the number of ``organs``, which says what it is about: disagreement, attention
    of the wrong group, and how unsure it is where that is unusual for its organ.

    Shares are those of its voxels in doubt: a place holds more, the whole border along them.
    """
    count = len(organs)
    usual = _usual_risk(evidence)
    ranks = _in_doubt(evidence, ranks, count)
    size = np.maximum(_counts(ranks, np.ones(ranks.shape, bool), count), 1)
    unsure = np.bincount(ranks.ravel(), weights=evidence.error_probability.ravel(), minlength=count + 1) / 255 / size
    reasons: dict[int, list[Reason]] = {number: [] for number in range(1, count + 1)}
    if evidence.other is not None:
        differ = _counts(ranks, evidence.other != evidence.labels, count) / size
        for number in range(1, count + 1):
            if differ[number] >= _DISAGREES:
                text = f"the {other_name} say something else in {differ[number]:.0%} of what is in doubt."
                reasons[number].append(_reason("disagreement", text, organs[number]))
    if evidence.dominant is not None and evidence.attention is not None:
        _attention_reasons(reasons, evidence, ranks, organs, owners, size)
    for number in range(1, count + 1):
        label = organs[number][0].label
        if unsure[number] >= unusual_border * usual[label]:
            text = (
                f"where it is in doubt, the network gives {unsure[number]:.0%} of the probability to other labels; "
                f"{usual[label]:.0%} are usual for this organ."
            )
            reasons[number].append(_reason("uncertain", text, organs[number]))
    return reasons


def _reason(kind: str, text: str, organs: tuple[Organ, ...]) -> Reason:
    """A reason of the network for a place about the first of ``organs``, which it names."""
    return Reason(kind, f"{organs[0].name}: {text}", organs[0].key)


def _usual_risk(evidence: Evidence) -> NDArray[np.float64]:
    """For each label the mean risk (0 to 1) of its voxels in doubt, those of the background by what they might be."""
    concern = np.where(evidence.labels > 0, evidence.labels, evidence.alternative)
    doubtful = evidence.error_probability >= _IN_DOUBT * 255
    counts = np.bincount(concern[doubtful], minlength=256)
    sums = np.bincount(concern[doubtful], weights=evidence.error_probability[doubtful], minlength=256)
    return np.asarray(sums / 255 / np.maximum(counts, 1))


def _in_doubt(evidence: Evidence, ranks: Bytes, count: int) -> Bytes:
    """``ranks`` without the voxels of little risk; a place that has no others keeps them."""
    doubtful = np.where(evidence.error_probability >= _IN_DOUBT * 255, ranks, np.uint8(0))
    keeps = np.bincount(doubtful.ravel(), minlength=count + 1) == 0
    keeps[0] = False
    return np.where(keeps[ranks], ranks, doubtful)


def _attention_reasons(
    reasons: dict[int, list[Reason]],
    evidence: Evidence,
    ranks: Bytes,
    organs: dict[int, tuple[Organ, ...]],
    owners: dict[int, int],
    size: NDArray[np.int64],
) -> None:
    count = len(organs)
    assert evidence.dominant is not None and evidence.attention is not None
    owner_of = np.zeros(256, np.uint8)
    for label, owner in owners.items():
        owner_of[label] = owner
    organ = np.where(evidence.labels > 0, evidence.labels, evidence.alternative)
    foreign = evidence.dominant != owner_of[organ]
    undecided = evidence.attention < _UNDECIDED * 255
    in_organs = evidence.labels > 0
    total = max(int(np.count_nonzero(in_organs)), 1)
    usual_foreign = np.count_nonzero(foreign & in_organs) / total
    usual_undecided = np.count_nonzero(undecided & in_organs) / total
    foreign_share = _counts(ranks, foreign, count) / size
    undecided_share = _counts(ranks, undecided, count) / size
    deciders = np.stack([_counts(ranks, foreign & (evidence.dominant == slot), count) for slot in (1, 2, 3)])
    for number in range(1, count + 1):
        if foreign_share[number] >= max(_ATTENTION, _MORE_THAN_USUAL * usual_foreign):
            expert = EXPERTS[int(deciders[:, number].argmax())]
            text = f"the {expert} expert decides in {foreign_share[number]:.0%} of what is in doubt, of others' organs."
            reasons[number].append(_reason("foreign_expert", text, organs[number]))
        if undecided_share[number] >= max(_ATTENTION, _MORE_THAN_USUAL * usual_undecided):
            text = f"in {undecided_share[number]:.0%} of what is in doubt no expert has half of the attention."
            reasons[number].append(_reason("undecided", text, organs[number]))


def _counts(ranks: Bytes, mask: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """How many voxels of each place are in ``mask``; index 0 is outside of places."""
    return np.bincount(ranks[mask], minlength=count + 1)


NO_SUGGESTION = 255

# Pieces that doubtful voxels are cut into, of which the first become places: as many as a byte can number.
_MOST_PIECES = 250
# A finding is a reason for the pieces of which it is so large a share, and for the one that has most of it.
_FINDING_SHARE = 0.5

# Added to the label of voxels that a finding is about; labels are far below.
_OF_FINDING = np.uint8(128)

# Scores are added up as whole numbers.
_UNIT = 10_000
# An organ with less than this share of a place is not what it is about.
_NAMED_SHARE = 0.1


@dataclass(frozen=True)
class Candidate:
    """A place on the model grid: ``number`` is its value in ``Candidates.map``; ``spot`` the voxel (z, y, x) in it
    to look at. ``organs`` are those it concerns, the one with most to be wrong first."""

    number: int
    organs: tuple[Organ, ...]
    score: float
    expected_wrong_ml: float
    spot: tuple[int, int, int]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Candidates:
    """Places by falling score. ``map`` (uint8, the model grid) holds their numbers, which are their ranks;
    ``suggestions`` (uint8) what anatomy wants in a voxel, 255 where it does not say."""

    candidates: tuple[Candidate, ...]
    map: Bytes
    suggestions: Bytes


def rank_candidates(
    evidence: Evidence,
    findings: AnatomicalFindings,
    owners: dict[int, int],
    grid: Grid,
    scoring: Scoring,
    other_name: str,
) -> Candidates:
    """Cut doubtful voxels and findings into places, score and order them.

    ``owners`` gives for each organ's label its expert: 1 head, 2 medium, 3 tail.
    """
    wrong, concern, suggestions = _concerns(evidence, findings, scoring)
    weights = _weights(evidence, findings, wrong, concern, scoring)
    limits = _limits(evidence, grid, scoring)

    def limit(box: Box, mask: NDArray[np.bool_]) -> float:
        return float(limits[int(concern[box][mask][0])])

    # Each about one organ, that of its reasons; what anatomy says against is apart from what the network is unsure of.
    kinds = concern.copy()
    for finding in findings.findings:
        kinds[finding.box][finding.mask] |= _OF_FINDING
    pieces = regions(weights, grid.spacing[::-1], scoring.across_mm, _MOST_PIECES, limit, kinds)
    count = int(pieces.max(initial=0))
    flat = pieces.ravel()
    expected = np.bincount(flat, weights=wrong.ravel(), minlength=count + 1) / 255 * grid.volume_ml_per_voxel
    score = np.bincount(flat, weights=weights.ravel(), minlength=count + 1) / _UNIT * grid.volume_ml_per_voxel
    highest = np.zeros(count + 1, np.uint8)
    np.maximum.at(highest, flat[flat > 0], evidence.error_probability.ravel()[flat > 0])
    found = _texts(findings.findings, pieces, concern, grid.volume_ml_per_voxel)
    organs = _organs(evidence, pieces, wrong, concern, count)
    told = network_reasons(evidence, pieces, organs, owners, other_name, scoring.unusual_border)

    doubtful = (score >= scoring.least_score) & (highest >= scoring.certain_enough * 255)
    # A border that is as unsure as it is everywhere around its organ is no reason to look there.
    kept = [piece for piece in range(1, count + 1) if piece in found or (doubtful[piece] and told[piece])]
    ml = np.bincount(flat, minlength=count + 1) * grid.volume_ml_per_voxel
    # Between the ml expected to be wrong and the probability to be wrong, which puts specks first.
    urgency = score / np.sqrt(np.maximum(ml, 1e-9))
    # Of equal ones that comes first which was cut first: the same one always.
    ranked = sorted(kept, key=lambda piece: (-round(float(urgency[piece]), 6), piece))[:MAX_FINDINGS]

    numbers = np.zeros(count + 1, np.uint8)
    numbers[ranked] = np.arange(1, len(ranked) + 1, dtype=np.uint8)
    ranks = numbers[pieces]
    places = []
    for number, piece in enumerate(ranked, start=1):
        reasons = sorted((*found.get(piece, ()), *told[piece]), key=lambda reason: KINDS.index(reason.kind))
        spot = _spot(ranks == number, wrong)
        places.append(
            Candidate(number, organs[piece], float(urgency[piece]), float(expected[piece]), spot, tuple(reasons))
        )
    suggestions[ranks == 0] = NO_SUGGESTION
    return Candidates(tuple(places), ranks, suggestions)


def _concerns(evidence: Evidence, findings: AnatomicalFindings, scoring: Scoring) -> tuple[Bytes, Bytes, Bytes]:
    """For each doubtful voxel how likely it is wrong (0 to 255; 0 for all others), the organ that this is about, and
    what anatomy suggests."""
    wrong = error_probability_of(evidence)
    wrong[wrong < _doubtful_from(wrong, scoring)] = 0
    concern = np.where(evidence.labels > 0, evidence.labels, evidence.alternative)
    suggestions = np.full(concern.shape, NO_SUGGESTION, np.uint8)
    # The most telling come last: theirs is the word where findings overlap.
    for finding in sorted(findings.findings, key=lambda each: -KINDS.index(each.kind)):
        concern[finding.box][finding.mask] = finding.organ.label
        least = np.uint8(round(finding.error_probability * 255))
        wrong[finding.box][finding.mask] = np.maximum(wrong[finding.box][finding.mask], least)
        if finding.suggestion is not None:
            suggestions[finding.box][finding.mask] = finding.suggestion
    wrong[concern == 0] = 0
    return wrong, concern, suggestions


def _doubtful_from(wrong: Bytes, scoring: Scoring) -> int:
    """The likelihood (0 to 255) from which voxels hold the doubtful share of what is expected to be wrong."""
    held = np.bincount(wrong.ravel(), minlength=256) * np.arange(256)
    from_above = np.cumsum(held[::-1])
    share = int(np.searchsorted(from_above, scoring.doubtful_share * from_above[-1]))
    return max(255 - share, round(scoring.least_likelihood * 255), 1)


def _weights(
    evidence: Evidence, findings: AnatomicalFindings, wrong: Bytes, concern: Bytes, scoring: Scoring
) -> NDArray[np.int64]:
    """What each voxel adds to the score of its place, in ``_UNIT`` of a voxel."""
    counts = np.zeros(256)
    for organ in evidence.vocabulary:
        counts[organ.label] = 1 + scoring.organ_share / usual_ml(organ)
        counts[organ.label] *= scoring.unusual if organ.key in findings.unusual else 1.0
    table = np.rint(np.arange(256)[:, None] / 255 * counts * _UNIT).astype(np.int64)
    return np.asarray(table[wrong, concern])


def _limits(evidence: Evidence, grid: Grid, scoring: Scoring) -> NDArray[np.float64]:
    """For each label the voxels that a place about it may have."""
    voxels = np.bincount(evidence.labels.ravel(), minlength=256).astype(float)
    limits = np.full(256, scoring.most_ml / grid.volume_ml_per_voxel)
    for organ in evidence.vocabulary:
        whole = max(voxels[organ.label], usual_ml(organ) / grid.volume_ml_per_voxel)
        limits[organ.label] = min(limits[organ.label], scoring.most_of_organ * whole)
    return np.maximum(limits, scoring.fewest_voxels)


def _organs(
    evidence: Evidence, pieces: Bytes, wrong: Bytes, concern: Bytes, count: int
) -> dict[int, tuple[Organ, ...]]:
    """For each piece the organ that it is about, then those that a share of it might be instead, the largest first."""
    inside = pieces > 0
    numbers, weights = pieces[inside].astype(np.intp), wrong[inside].astype(float)
    about = np.zeros(count + 1, np.uint8)
    about[numbers] = concern[inside]
    instead = np.bincount(numbers * 256 + evidence.alternative[inside], weights, (count + 1) * 256).reshape(-1, 256)
    named = {}
    for number in range(1, count + 1):
        instead[number, [0, about[number]]] = 0
        total = weights[numbers == number].sum()
        labels = np.flatnonzero(instead[number] >= max(_NAMED_SHARE * total, 1e-9))
        order = sorted(labels.tolist(), key=lambda label: (-instead[number][label], label))
        named[number] = tuple(evidence.vocabulary.by_label[label] for label in (int(about[number]), *order))
    return named


def _texts(
    findings: list[AnatomicalFinding], pieces: Bytes, concern: Bytes, ml_per_voxel: float
) -> dict[int, list[Reason]]:
    """The reasons that findings give for each piece of their organ: for the one that has most of a finding, and for
    those that the finding is most of. Of several alike the number and the ml."""
    found: dict[int, dict[str, list[AnatomicalFinding]]] = {}
    sizes = np.bincount(pieces.ravel(), minlength=256)
    for finding in findings:
        inside = finding.mask & (concern[finding.box] == finding.organ.label)
        held = np.bincount(pieces[finding.box][inside], minlength=256)
        held[0] = 0
        if held.any():
            largely = np.flatnonzero(held > _FINDING_SHARE * sizes).tolist() if finding.everywhere else []
            for piece in {int(held.argmax()), *largely}:
                found.setdefault(piece, {}).setdefault(finding.kind, []).append(finding)
    return {
        piece: [Reason(kind, several(alike, ml_per_voxel), alike[0].organ.key) for kind, alike in kinds.items()]
        for piece, kinds in found.items()
    }


def _spot(place: NDArray[np.bool_], error_probability: Bytes) -> tuple[int, int, int]:
    """The voxel of ``place`` around which most of the risk lies, within two voxels."""
    box = box_of(place)
    assert box is not None
    inside = place[box]
    total = np.where(inside, error_probability[box], 0).astype(np.float64) + inside
    for axis in range(3):
        sums = np.cumsum(np.pad(total, [(3, 2) if each == axis else (0, 0) for each in range(3)]), axis=axis)
        length = sums.shape[axis]
        total = sums.take(range(5, length), axis=axis) - sums.take(range(length - 5), axis=axis)
    best = np.unravel_index(int(np.where(inside, np.round(total, 3), -1).argmax()), inside.shape)
    z, y, x = (int(index) + part.start for index, part in zip(best, box, strict=True))
    return z, y, x
