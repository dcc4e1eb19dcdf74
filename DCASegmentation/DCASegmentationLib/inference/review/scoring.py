"""The numbers by which places are made and ranked, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """How doubt becomes places and their order.

    A voxel is doubtful where it is among those that hold ``doubtful_share`` of all that is expected to be wrong (see
    ``likelihood``), and at least ``least_likelihood`` likely to be wrong itself: so the share adapts to the network,
    and a sure one has few doubtful voxels. A place is a connected piece of doubtful voxels within a box of
    ``across_mm`` a side, what can be looked at in one go, of at most ``most_ml`` and at most the share
    ``most_of_organ`` of its organ, but not cut below ``fewest_voxels``. Without a finding it needs a voxel of
    ``certain_enough`` risk (0 to 1; see ``evidence``) and a score of ``least_score``.

    That a border is unsure is a reason by itself only where it is ``unusual_border`` times as unsure as that of its
    organ is in this scan.

    A finding makes its voxels at least so likely to be wrong: an island, a hole and so on. The score of a place is the
    ml expected to be wrong in it, plus ``organ_share`` ml times the share of an ordinary organ that this is: ml alone
    would hide small organs for good. What an organ of unusual volume or position has in it counts ``unusual`` times.
    Places are ordered by their score over the square root of their ml.

    The values were chosen on phantoms whose seeds begin at ``evaluation.review_cases.TUNING_SEEDS`` and reported on
    others; ``dca evaluate-review`` repeats both. All orders that it compares have the same ``across_mm``.
    """

    across_mm: float = 40.0
    most_ml: float = 28.0
    most_of_organ: float = 0.2
    fewest_voxels: int = 32
    doubtful_share: float = 0.9
    least_likelihood: float = 0.05
    certain_enough: float = 0.35
    least_score: float = 0.5
    unusual_border: float = 1.3
    organ_share: float = 5.0
    unusual: float = 1.5
    island: float = 0.7
    hole: float = 0.7
    missing: float = 0.6
    cut: float = 0.5
    volume: float = 0.4
    position: float = 0.5
