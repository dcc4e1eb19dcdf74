"""What a score is where the prediction, the truth or both lack an organ: conventions differ, and move means by points.

Dice and normalized surface Dice are overlaps, the others distances. The family of methods that the paper compares with
scores by three conventions, each reproduced here under the name of its repository.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

Kind = Literal["overlap", "distance"]


@dataclass(frozen=True)
class EmptyPolicy:
    """Scores of an organ that is on neither side (``both_*``) or on one side only (``one_*``); NaN leaves it out.

    Where ``nothing_found`` is given, it is every score of a prediction without any organ at all.
    """

    name: str
    both_overlap: float
    both_distance: float
    one_distance: float
    one_overlap: float = 0.0
    nothing_found: float | None = None

    def score(self, kind: Kind, in_prediction: bool, in_truth: bool) -> float:
        """The score of an organ that at least one side lacks. Raises ValueError where both have it."""
        if in_prediction and in_truth:
            raise ValueError("both sides have the organ: its score is to be measured")
        one = in_prediction or in_truth
        if kind == "overlap":
            return self.one_overlap if one else self.both_overlap
        return self.one_distance if one else self.both_distance


_NAN = math.nan

POLICIES = {
    policy.name: policy
    for policy in (
        # Ours: an organ on neither side tells nothing; one that is missed or invented has no distance, and its
        # Dice of 0 says so. A distance must be read together with Dice.
        EmptyPolicy("leave_out", _NAN, _NAN, _NAN),
        # xmed-lab/DHC, GenericSSL, SKCDF: percent, where "both lack it" scores 1, which is 1 %: absent organs cost
        # nearly all of their Dice.
        EmptyPolicy("dhc", 0.01, 0.0, 128.0),
        # cicailalala/GALoss, in its test: the same in shares, so that the 1 is 100 %.
        EmptyPolicy("galoss", 1.0, 0.0, 128.0),
        # The same repository's validation during training: 0 for all, the best distance there is included.
        EmptyPolicy("galoss_validation", 0.0, 0.0, 0.0, nothing_found=0.0),
    )
}


def policy_named(name: str) -> EmptyPolicy:
    """Raises UserError for a name there is not."""
    if name not in POLICIES:
        raise UserError(f"There is no policy '{name}' for empty labels.", f"Choose one of: {', '.join(POLICIES)}.")
    return POLICIES[name]
