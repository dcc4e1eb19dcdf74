"""Ranking of findings, from the network's evidence and the anatomical findings, with reasons in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..inference.maps import EXPERTS
from ..inference.measurements import compute_bounding_boxes
from ..organs import Organ
from ..types import Box
from .evidence import Bytes, Evidence
from .findings import AnatomicalFinding, AnatomicalFindings, summarize
from .normal_ranges import compute_typical_volume
from .regions import ReviewOptions, compute_error_probability, split_into_regions
from .schema import KINDS, MAX_FINDINGS, Reason

# A reason is given if it holds for at least this share of a region's uncertain voxels.
_DISAGREES = 0.3
_ATTENTION = 0.5
# Error probability from which a voxel is uncertain.
_UNCERTAIN = 0.12
# A region is uncertain throughout if the share of its voxels that are is at least this, and this many times that of the
# median region: a border is uncertain in a thin layer only. On five people of the tuning seeds, where the median was
# 0.36, regions from 0.5 had 7 % gross errors, all regions 3 %; with three other CTs (one of them real), 16 %.
_UNCERTAIN_THROUGHOUT, _TIMES_THE_MEDIAN = 0.5, 1.2
# A property of the attention counts only if its share in the region exceeds that in the whole organ by this difference.
# In some models an expert has most of the attention in organs of another one; there it says nothing about errors.
_MORE_THAN_USUAL = 0.3
# Reasons that explain a finding but do not make one: in regions with no other reason, gross errors were as rare as
# around them (3 % of the volume on eight cases with dca-abdomen 0.2.0; pieces, holes and unusual volumes: 16 to 92 %).
_SUPPORTING = frozenset({"foreign_expert", "undecided"})
# Attention of the dominant expert below which no expert decides.
_UNDECIDED = 0.5


def find_network_reasons(
    evidence: Evidence,
    ranks: Bytes,
    organs: dict[int, tuple[Organ, ...]],
    owners: dict[int, int],
    other_name: str,
    unusual_border: float,
) -> dict[int, list[Reason]]:
    """Return the reasons from the network for each region: disagreement, attention of other experts, uncertainty.

    ``ranks`` (z, y, x) holds the number of each voxel's region, from 1; ``organs`` the organs of each region by number,
    the one it is about first. ``owners`` maps labels to experts (1 head, 2 medium, 3 tail). Uncertainty is a reason if
    it is ``unusual_border`` times as large as usual for the organ, or if the region is uncertain throughout.

    Shares refer to the uncertain voxels of a region. It contains other voxels too: the border along the uncertain ones.
    """
    count = len(organs)
    whole, inside = evidence, np.flatnonzero(ranks)
    usual = _compute_usual_error_probability(
        whole.select_voxels(np.flatnonzero(whole.error_probability >= _UNCERTAIN * 255))
    )
    # From here on only the regions' voxels, a small part of the volume.
    evidence, ranks = whole.select_voxels(inside), ranks.ravel()[inside]
    uncertain = evidence.error_probability >= _UNCERTAIN * 255
    uncertain_share = _count_voxels(ranks, uncertain, count) / np.maximum(np.bincount(ranks, minlength=count + 1), 1)
    usual_share = float(np.median(uncertain_share[1:])) if count else 0.0
    throughout = max(_UNCERTAIN_THROUGHOUT, _TIMES_THE_MEDIAN * usual_share)
    ranks = _keep_uncertain(uncertain, ranks, count)
    size = np.maximum(np.bincount(ranks, minlength=count + 1), 1)
    mean = np.bincount(ranks, weights=evidence.error_probability, minlength=count + 1) / 255 / size
    reasons: dict[int, list[Reason]] = {number: [] for number in range(1, count + 1)}
    if evidence.other is not None:
        differ = _count_voxels(ranks, evidence.other != evidence.labels, count) / size
        for number in range(1, count + 1):
            if differ[number] >= _DISAGREES:
                text = f"the {other_name} assign a different label to {differ[number]:.0%} of the uncertain voxels."
                reasons[number].append(_make_reason("disagreement", text, organs[number]))
    if evidence.dominant is not None and evidence.attention is not None:
        organ_voxels = whole.select_voxels(np.flatnonzero(whole.labels))
        _add_attention_reasons(reasons, organ_voxels, evidence, ranks, organs, owners, size)
    for number in range(1, count + 1):
        label = organs[number][0].label
        if mean[number] >= unusual_border * usual[label]:
            text = (
                f"in the uncertain voxels, the network gives {mean[number]:.0%} of the probability to other labels; "
                f"{usual[label]:.0%} is usual for this organ."
            )
            reasons[number].append(_make_reason("uncertain", text, organs[number]))
        elif uncertain_share[number] >= throughout:
            text = (
                f"{uncertain_share[number]:.0%} of the voxels are uncertain; {usual_share:.0%} is usual in this scan."
            )
            reasons[number].append(_make_reason("uncertain", text, organs[number]))
    return reasons


def _make_reason(kind: str, text: str, organs: tuple[Organ, ...]) -> Reason:
    """Return a reason about the first of ``organs``, with its name in the text."""
    return Reason(kind, f"{organs[0].name}: {text}", organs[0].key)


def _compute_usual_error_probability(uncertain: Evidence) -> NDArray[np.float64]:
    """Return the mean error probability (0 to 1) of each label, from the evidence on all ``uncertain`` voxels.

    Background voxels count for their alternative label.
    """
    concern = _get_concerned_labels(uncertain)
    counts = np.bincount(concern, minlength=256)
    sums = np.bincount(concern, weights=uncertain.error_probability, minlength=256)
    return np.asarray(sums / 255 / np.maximum(counts, 1))


def _keep_uncertain(uncertain: NDArray[np.bool_], ranks: Bytes, count: int) -> Bytes:
    """Return ``ranks`` with the certain voxels set to 0; a region without uncertain voxels keeps all of its voxels."""
    only = np.where(uncertain, ranks, np.uint8(0))
    keeps_all = np.bincount(only, minlength=count + 1) == 0
    keeps_all[0] = False
    return np.where(keeps_all[ranks], ranks, only)


def _add_attention_reasons(
    reasons: dict[int, list[Reason]],
    organ_voxels: Evidence,
    evidence: Evidence,
    ranks: Bytes,
    organs: dict[int, tuple[Organ, ...]],
    owners: dict[int, int],
    size: NDArray[np.int64],
) -> None:
    count = len(organs)
    owner_of = np.zeros(256, np.uint8)
    for label, owner in owners.items():
        owner_of[label] = owner
    usual_foreign, usual_undecided = (
        _compute_usual_shares(organ_voxels.labels, mask) for mask in _find_foreign_and_undecided(organ_voxels, owner_of)
    )
    foreign, undecided = _find_foreign_and_undecided(evidence, owner_of)
    foreign_share = _count_voxels(ranks, foreign, count) / size
    undecided_share = _count_voxels(ranks, undecided, count) / size
    by_expert = np.stack([_count_voxels(ranks, foreign & (evidence.dominant == slot), count) for slot in (1, 2, 3)])
    for number in range(1, count + 1):
        label = organs[number][0].label
        if foreign_share[number] >= max(_ATTENTION, usual_foreign[label] + _MORE_THAN_USUAL):
            expert = EXPERTS[int(by_expert[:, number].argmax())]
            text = (
                f"the {expert} expert is dominant in {foreign_share[number]:.0%} of the uncertain voxels, although the "
                f"organ belongs to another expert ({usual_foreign[label]:.0%} in the whole organ)."
            )
            reasons[number].append(_make_reason("foreign_expert", text, organs[number]))
        if undecided_share[number] >= max(_ATTENTION, usual_undecided[label] + _MORE_THAN_USUAL):
            text = (
                f"no expert reaches half of the attention in {undecided_share[number]:.0%} of the uncertain voxels "
                f"({usual_undecided[label]:.0%} in the whole organ)."
            )
            reasons[number].append(_make_reason("undecided", text, organs[number]))


def _find_foreign_and_undecided(evidence: Evidence, owner_of: Bytes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks: another expert than the organ's is dominant; no expert reaches half of the attention."""
    assert evidence.dominant is not None and evidence.attention is not None
    return evidence.dominant != owner_of[_get_concerned_labels(evidence)], evidence.attention < _UNDECIDED * 255


def _get_concerned_labels(evidence: Evidence) -> Bytes:
    """Return the label that each voxel is about: its own, or in the background its alternative."""
    return np.where(evidence.labels > 0, evidence.labels, evidence.alternative)


def _compute_usual_shares(labels: Bytes, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of each label's voxels (256,) that are in ``mask``; ``labels`` are those of all organ voxels.

    A label without voxels has the share of all organs.
    """
    counts = np.bincount(labels, minlength=256)
    inside = np.bincount(labels[mask], minlength=256)
    mean = inside.sum() / max(int(counts.sum()), 1)
    return np.where(counts > 0, inside / np.maximum(counts, 1), mean)


def _count_voxels(ranks: Bytes, mask: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Return the number of voxels of each region in ``mask``; ``ranks`` is 0 outside of regions."""
    return np.bincount(ranks[mask], minlength=count + 1)


NO_SUGGESTION = 255
"""Value of ``Candidates.suggestions`` where anatomy suggests nothing."""

# Regions that doubtful voxels are split into; the best become findings. A byte can number them.
_MAX_REGIONS = 250
# An anatomical finding is a reason for each region that it covers to this share, and for the region with most of it.
_FINDING_SHARE = 0.5

# Added to the label of voxels in anatomical findings; labels are far below.
_IN_FINDING = np.uint8(128)

# Scores are summed as integers, in this fraction of a voxel.
_UNIT = 10_000
# Other organs are named if they may be this share of a region.
_NAMED_SHARE = 0.1


@dataclass(frozen=True)
class Candidate:
    """A finding on the model grid.

    ``number`` is its value in ``Candidates.map``. ``organs``: the organ it is about, then those that a part of it may
    be instead. ``spot`` is the voxel (z, y, x) to look at. ``expected_wrong_ml`` and ``reasons`` as in
    ``schema.Finding``.
    """

    number: int
    organs: tuple[Organ, ...]
    score: float
    expected_wrong_ml: float
    spot: tuple[int, int, int]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Candidates:
    """Findings on the model grid, by descending score.

    ``map`` (uint8, z, y, x) holds their numbers, which are their ranks; ``suggestions`` (uint8, z, y, x) the labels
    that anatomy suggests, ``NO_SUGGESTION`` elsewhere.
    """

    candidates: tuple[Candidate, ...]
    map: Bytes
    suggestions: Bytes


def rank_candidates(
    evidence: Evidence,
    findings: AnatomicalFindings,
    owners: dict[int, int],
    grid: Grid,
    options: ReviewOptions,
    other_name: str,
) -> Candidates:
    """Split doubtful voxels and anatomical findings into regions, score and rank them.

    ``owners`` maps each organ's label to its expert: 1 head, 2 medium, 3 tail. ``other_name`` names the other
    prediction in texts.
    """
    wrong, concern, suggestions = _make_concern_maps(evidence, findings, options)
    weights = _compute_weights(evidence, findings, wrong, concern, options)
    limits = _compute_limits(evidence, grid, options)

    def limit(box: Box, mask: NDArray[np.bool_]) -> float:
        return float(limits[int(concern[box][mask][0])])

    # Each region is about one organ, that of its reasons. Anatomical findings are separate from uncertain voxels.
    kinds = concern.copy()
    for finding in findings.findings:
        kinds[finding.box][finding.mask] |= _IN_FINDING
    pieces = split_into_regions(weights, grid.spacing[::-1], options.max_extent_mm, _MAX_REGIONS, limit, kinds)
    count = int(pieces.max(initial=0))
    inside = np.flatnonzero(pieces)
    flat = pieces.ravel()[inside]
    expected = np.bincount(flat, weights=wrong.ravel()[inside], minlength=count + 1) / 255 * grid.volume_ml_per_voxel
    score = np.bincount(flat, weights=weights.ravel()[inside], minlength=count + 1) / _UNIT * grid.volume_ml_per_voxel
    highest = np.zeros(count + 1, np.uint8)
    np.maximum.at(highest, flat, evidence.error_probability.ravel()[inside])
    anatomical = _find_anatomical_reasons(findings.findings, pieces, concern, grid.volume_ml_per_voxel)
    organs = _find_organs(evidence, pieces, wrong, concern, count)
    from_network = find_network_reasons(evidence, pieces, organs, owners, other_name, options.unusual_border)

    doubtful = (score >= options.min_score) & (highest >= options.certain_enough * 255)
    # A border as uncertain as everywhere around its organ needs no review: it has no reason.
    kept = [
        piece
        for piece in range(1, count + 1)
        if piece in anatomical
        or (doubtful[piece] and any(reason.kind not in _SUPPORTING for reason in from_network[piece]))
    ]
    ml = np.bincount(flat, minlength=count + 1) * grid.volume_ml_per_voxel
    # A compromise between the ml expected to be wrong and the probability of an error, which would put specks first.
    urgency = score / np.sqrt(np.maximum(ml, 1e-9))
    # Ties are broken by the order of the regions, so that the result is reproducible.
    ranked = sorted(kept, key=lambda piece: (-round(float(urgency[piece]), 6), piece))[:MAX_FINDINGS]

    numbers = np.zeros(count + 1, np.uint8)
    numbers[ranked] = np.arange(1, len(ranked) + 1, dtype=np.uint8)
    ranks = numbers[pieces]
    boxes = compute_bounding_boxes(ranks)
    candidates = []
    for number, piece in enumerate(ranked, start=1):
        reasons = sorted(
            (*anatomical.get(piece, ()), *from_network[piece]), key=lambda reason: KINDS.index(reason.kind)
        )
        box = boxes[number]
        spot = _find_highest_point(ranks[box] == number, wrong[box], box)
        candidates.append(
            Candidate(number, organs[piece], float(urgency[piece]), float(expected[piece]), spot, tuple(reasons))
        )
    suggestions[ranks == 0] = NO_SUGGESTION
    return Candidates(tuple(candidates), ranks, suggestions)


def _make_concern_maps(
    evidence: Evidence, findings: AnatomicalFindings, options: ReviewOptions
) -> tuple[Bytes, Bytes, Bytes]:
    """Return three maps (z, y, x): error probability, organ concerned, and label that anatomy suggests.

    The error probability (0 to 255) is 0 in voxels that are not doubtful.
    """
    wrong = compute_error_probability(evidence)
    wrong[wrong < _compute_doubt_threshold(wrong, options)] = 0
    concern = _get_concerned_labels(evidence)
    suggestions = np.full(concern.shape, NO_SUGGESTION, np.uint8)
    # The most important kind comes last, so that it wins where findings overlap.
    for finding in sorted(findings.findings, key=lambda each: -KINDS.index(each.kind)):
        concern[finding.box][finding.mask] = finding.organ.label
        minimum = np.uint8(round(finding.error_probability * 255))
        wrong[finding.box][finding.mask] = np.maximum(wrong[finding.box][finding.mask], minimum)
        if finding.suggestion is not None:
            suggestions[finding.box][finding.mask] = finding.suggestion
    wrong[concern == 0] = 0
    return wrong, concern, suggestions


def _compute_doubt_threshold(wrong: Bytes, options: ReviewOptions) -> int:
    """Return the error probability (0 to 255) from which voxels are doubtful; see ``ReviewOptions``."""
    expected = np.bincount(wrong.ravel(), minlength=256) * np.arange(256)
    from_above = np.cumsum(expected[::-1])
    share = int(np.searchsorted(from_above, options.doubtful_share * from_above[-1]))
    return max(255 - share, round(options.min_probability_of_error * 255), 1)


def _compute_weights(
    evidence: Evidence, findings: AnatomicalFindings, wrong: Bytes, concern: Bytes, options: ReviewOptions
) -> NDArray[np.int64]:
    """Return what each voxel adds to the score of its region, in 1 / ``_UNIT`` of a voxel."""
    counts = np.zeros(256)
    for organ in evidence.vocabulary:
        counts[organ.label] = 1 + options.organ_share / compute_typical_volume(organ)
        counts[organ.label] *= options.unusual if organ.key in findings.unusual else 1.0
    table = np.rint(np.arange(256)[:, None] / 255 * counts * _UNIT).astype(np.int64)
    return np.asarray(table[wrong, concern])


def _compute_limits(evidence: Evidence, grid: Grid, options: ReviewOptions) -> NDArray[np.float64]:
    """Return for each label the maximum number of voxels of a region about it."""
    voxels = np.bincount(evidence.labels.ravel(), minlength=256).astype(float)
    limits = np.full(256, options.max_ml / grid.volume_ml_per_voxel)
    for organ in evidence.vocabulary:
        whole = max(voxels[organ.label], compute_typical_volume(organ) / grid.volume_ml_per_voxel)
        limits[organ.label] = min(limits[organ.label], options.max_organ_fraction * whole)
    return np.maximum(limits, options.min_voxels)


def _find_organs(
    evidence: Evidence, pieces: Bytes, wrong: Bytes, concern: Bytes, count: int
) -> dict[int, tuple[Organ, ...]]:
    """Return the organs of each region: the one it is about, then those that a part may be instead, largest first."""
    inside = pieces > 0
    numbers, weights = pieces[inside].astype(np.intp), wrong[inside].astype(float)
    about = np.zeros(count + 1, np.uint8)
    about[numbers] = concern[inside]
    instead = np.bincount(numbers * 256 + evidence.alternative[inside], weights, (count + 1) * 256).reshape(-1, 256)
    totals = np.bincount(numbers, weights, count + 1)
    named = {}
    for number in range(1, count + 1):
        instead[number, [0, about[number]]] = 0
        labels = np.flatnonzero(instead[number] >= max(_NAMED_SHARE * totals[number], 1e-9))
        order = sorted(labels.tolist(), key=lambda label: (-instead[number][label], label))
        named[number] = tuple(evidence.vocabulary.by_label[label] for label in (int(about[number]), *order))
    return named


def _find_anatomical_reasons(
    findings: list[AnatomicalFinding], pieces: Bytes, concern: Bytes, ml_per_voxel: float
) -> dict[int, list[Reason]]:
    """Return the reasons of each region from anatomical findings.

    A finding is a reason for the region of its organ that contains most of it, and for each region that consists mostly
    of it. Several findings of the same kind become one reason.
    """
    by_piece: dict[int, dict[str, list[AnatomicalFinding]]] = {}
    sizes = np.bincount(pieces.ravel(), minlength=256)
    for finding in findings:
        inside = finding.mask & (concern[finding.box] == finding.organ.label)
        overlap = np.bincount(pieces[finding.box][inside], minlength=256)
        overlap[0] = 0
        if overlap.any():
            covered = np.flatnonzero(overlap > _FINDING_SHARE * sizes).tolist() if finding.everywhere else []
            for piece in {int(overlap.argmax()), *covered}:
                by_piece.setdefault(piece, {}).setdefault(finding.kind, []).append(finding)
    return {
        piece: [Reason(kind, summarize(same, ml_per_voxel), same[0].organ.key) for kind, same in kinds.items()]
        for piece, kinds in by_piece.items()
    }


def _find_highest_point(inside: NDArray[np.bool_], error_probability: Bytes, box: Box) -> tuple[int, int, int]:
    """Return the voxel of a region with the largest sum of error probability within two voxels along each axis.

    ``inside`` is the region's mask in its bounding box ``box``, ``error_probability`` has the same shape.
    """
    total = np.where(inside, error_probability, 0).astype(np.float64) + inside
    for axis in range(3):
        sums = np.cumsum(np.pad(total, [(3, 2) if each == axis else (0, 0) for each in range(3)]), axis=axis)
        length = sums.shape[axis]
        total = sums.take(range(5, length), axis=axis) - sums.take(range(length - 5), axis=axis)
    best = np.unravel_index(int(np.where(inside, np.round(total, 3), -1).argmax()), inside.shape)
    z, y, x = (int(index) + part.start for index, part in zip(best, box, strict=True))
    return z, y, x
