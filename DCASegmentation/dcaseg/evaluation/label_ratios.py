"""Measures how stable the ranking of organs and their groups are with fewer labeled cases (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..method.log_gap import Partition, PartitionMode
from ..organs import Vocabulary
from ..training.cases import Case
from ..training.training_set import divide

MODES: tuple[PartitionMode, ...] = ("sequential", "top2")
"""The rule of the slides and our rule."""


@dataclass(frozen=True)
class Subset:
    """A set of labeled cases with a title such as "10 %"."""

    title: str
    cases: Sequence[Case]


@dataclass(frozen=True)
class Stability:
    """Agreement of random subsets of ``size`` cases with all cases.

    ``tau`` and ``min_tau`` are the mean and lowest Kendall tau of the rankings, ``same_groups`` the fraction of
    subsets with identical groups, ``moved`` the mean number of organs in another group.
    """

    size: int
    mode: PartitionMode
    tau: float
    min_tau: float
    same_groups: float
    moved: float


def make_nested_subsets(cases: Sequence[Case], ratios: Sequence[float]) -> list[Subset]:
    """Nested subsets: for each of ``ratios`` (percent), the first cases of the list, at least one."""
    sizes = [max(1, round(len(cases) * ratio / 100)) for ratio in ratios]
    return [
        Subset(f"{ratio:g} % ({size})", cases[:size]) for ratio, size in dict(zip(ratios, sizes, strict=True)).items()
    ]


def rank_labels(division: Partition) -> list[int]:
    """All labels by decreasing size; absent organs come last."""
    return [*division.ranking, *division.absent]


def kendall_tau(one: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's tau of two rankings of the same items: 1 for the same order, -1 for the reverse. 1 for a single item.

    Raises ValueError if the items differ.
    """
    if sorted(one) != sorted(other):
        raise ValueError("the rankings contain different items")
    rank = {item: index for index, item in enumerate(other)}
    pairs = list(combinations(one, 2))
    concordant = sum(rank[first] < rank[second] for first, second in pairs)
    return 2 * concordant / len(pairs) - 1 if pairs else 1.0


def count_moved_organs(one: Partition, other: Partition) -> int:
    """Number of organs that are in another group."""
    groups = {label: group for group, owned in enumerate(other.owners) for label in owned}
    return sum(groups[label] != group for group, owned in enumerate(one.owners) for label in owned)


def measure_stability(
    cases: Sequence[Case], vocabulary: Vocabulary, size: int, mode: PartitionMode, draws: int = 200, seed: int = 0
) -> Stability:
    """Compare ``draws`` random subsets of ``size`` cases, drawn without replacement, with all ``cases``."""
    generator = np.random.default_rng(seed)
    whole = divide(cases, vocabulary, mode)
    taus, changes = [], []
    for _ in range(draws):
        drawn = [cases[index] for index in generator.permutation(len(cases))[:size]]
        division = divide(drawn, vocabulary, mode)
        taus.append(kendall_tau(rank_labels(division), rank_labels(whole)))
        changes.append(count_moved_organs(division, whole))
    return Stability(
        size, mode, float(np.mean(taus)), float(np.min(taus)), float(np.mean(np.array(changes) == 0)),
        float(np.mean(changes)),
    )  # fmt: skip


def describe_subset(subset: Subset, vocabulary: Vocabulary, whole: Sequence[Case]) -> dict[str, Any]:
    """The ranking and the groups of ``subset`` by each mode, compared with those of ``whole``, for JSON."""
    divisions = {mode: divide(subset.cases, vocabulary, mode) for mode in MODES}
    first = next(iter(divisions.values()))
    reference = {mode: divide(whole, vocabulary, mode) for mode in MODES}
    names = {organ.label: organ.key for organ in vocabulary}
    return {
        "title": subset.title,
        "cases": [case.name for case in subset.cases],
        "ranking": [names[label] for label in rank_labels(first)],
        "kendall_tau": round(kendall_tau(rank_labels(first), rank_labels(reference[first.mode])), 4),
        "groups": {
            mode: {
                **{
                    group: [names[label] for label in owned]
                    for group, owned in zip(("head", "medium", "tail"), division.owners, strict=True)
                },
                "moved": count_moved_organs(division, reference[mode]),
            }
            for mode, division in divisions.items()
        },
    }
