"""The numbers by which places are made and ranked, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """How doubt becomes places and their order.

    A voxel is doubtful where it is among those that hold ``doubtful_share`` of all that is expected to be wrong (see
    ``likelihood``), and at least ``least_likelihood`` likely to be wrong itself: so the share adapts to the network,
    and a sure one has few doubtful voxels. A place is a connected piece of doubtful voxels within a box of
    ``across_mm`` a side, what can be looked at in one go. Without a finding it needs a voxel of ``certain_enough`` risk
    (0 to 1; see ``evidence``) and a score of ``least_score``.

    A finding makes its voxels at least so likely to be wrong: an island, a hole and so on. The score of a place is the
    ml expected to be wrong in it, plus ``organ_share`` ml times the share of an ordinary organ that this is: ml alone
    would hide small organs for good. What an organ of unusual volume or position has in it counts ``unusual`` times.

    The values were chosen on phantoms whose seeds begin at ``evaluation.review_cases.TUNING_SEEDS`` and reported on
    others; ``dca evaluate-review`` repeats both. All orders that it compares have the same ``across_mm``.
    """

    across_mm: float = 80.0
    doubtful_share: float = 0.9
    least_likelihood: float = 0.05
    certain_enough: float = 0.35
    least_score: float = 0.5
    organ_share: float = 5.0
    unusual: float = 1.5
    island: float = 0.7
    hole: float = 0.7
    missing: float = 0.6
    cut: float = 0.5
    volume: float = 0.4
    position: float = 0.5
