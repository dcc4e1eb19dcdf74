"""The numbers by which places are made and ranked, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """How suspicion becomes places and their order.

    A voxel is suspicious from a risk of ``suspicious`` on (0 to 1; see ``evidence``), and a place needs a voxel of
    ``certain_enough`` risk or a finding. Places smaller than ``smallest_ml`` without a finding are left out.

    A finding gives its voxels at least its risk: an island, a hole and so on. The score of a place is the ml expected
    to be wrong in it, plus ``organ_share`` ml times the share of an ordinary organ that this is: ml alone would hide
    small organs for good. An organ of unusual volume or position has its places' score multiplied by ``unusual``.

    The values were chosen on phantoms whose seeds begin at ``evaluation.review_cases.TUNING_SEEDS`` and reported on
    others; ``dca evaluate-review`` repeats both.
    """

    suspicious: float = 0.12
    certain_enough: float = 0.35
    smallest_ml: float = 0.5
    organ_share: float = 20.0
    unusual: float = 1.5
    island: float = 0.7
    hole: float = 0.7
    missing: float = 0.6
    cut: float = 0.5
    volume: float = 0.4
    position: float = 0.5
