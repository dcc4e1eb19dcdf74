"""What the network itself says about places, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...organs import Organ
from ...review_file import Reason
from ..maps import EXPERTS
from .evidence import Bytes, Evidence

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
    unsure = np.bincount(ranks.ravel(), weights=evidence.risk.ravel(), minlength=count + 1) / 255 / size
    reasons: dict[int, list[Reason]] = {number: [] for number in range(1, count + 1)}
    if evidence.other is not None:
        differ = _counts(ranks, evidence.other != evidence.labels, count) / size
        for number in range(1, count + 1):
            if differ[number] >= _DISAGREES:
                text = f"the {other_name} say something else in {differ[number]:.0%} of what is in doubt."
                reasons[number].append(_reason("disagreement", text, organs[number]))
    if evidence.decider is not None and evidence.attention is not None:
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
    doubtful = evidence.risk >= _IN_DOUBT * 255
    counts = np.bincount(concern[doubtful], minlength=256)
    sums = np.bincount(concern[doubtful], weights=evidence.risk[doubtful], minlength=256)
    return np.asarray(sums / 255 / np.maximum(counts, 1))


def _in_doubt(evidence: Evidence, ranks: Bytes, count: int) -> Bytes:
    """``ranks`` without the voxels of little risk; a place that has no others keeps them."""
    doubtful = np.where(evidence.risk >= _IN_DOUBT * 255, ranks, np.uint8(0))
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
    assert evidence.decider is not None and evidence.attention is not None
    owner_of = np.zeros(256, np.uint8)
    for label, owner in owners.items():
        owner_of[label] = owner
    organ = np.where(evidence.labels > 0, evidence.labels, evidence.alternative)
    foreign = evidence.decider != owner_of[organ]
    undecided = evidence.attention < _UNDECIDED * 255
    in_organs = evidence.labels > 0
    total = max(int(np.count_nonzero(in_organs)), 1)
    usual_foreign = np.count_nonzero(foreign & in_organs) / total
    usual_undecided = np.count_nonzero(undecided & in_organs) / total
    foreign_share = _counts(ranks, foreign, count) / size
    undecided_share = _counts(ranks, undecided, count) / size
    deciders = np.stack([_counts(ranks, foreign & (evidence.decider == slot), count) for slot in (1, 2, 3)])
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
