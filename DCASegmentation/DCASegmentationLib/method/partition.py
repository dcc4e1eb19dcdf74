"""Head, medium and tail: the groups of organs and the voxel counts they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

PartitionMode = Literal["top2", "sequential", "balanced", "fixed", "average", "manual"]


@dataclass(frozen=True)
class Partition:
    """The three groups of organs and what they were derived from.

    ``ranking`` holds the labels that have voxels, c_(1) to c_(K'), by falling ``counts`` (V_k, voxels), ties by
    label. ``head``, ``medium`` and ``tail`` (S_H, S_M, S_T) hold every label once, in the order of the ranking;
    labels without voxels come last in their group.

    Raises ValueError where these do not fit together.
    """

    ranking: tuple[int, ...]
    counts: tuple[int, ...]
    head: tuple[int, ...]
    medium: tuple[int, ...]
    tail: tuple[int, ...]
    mode: PartitionMode
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        grouped = [*self.head, *self.medium, *self.tail]
        if self.mode not in get_args(PartitionMode):
            raise ValueError(f"{self.mode!r} is no partition mode")
        if len(set(grouped)) != len(grouped) or not set(self.ranking) <= set(grouped):
            raise ValueError("every label must be in exactly one of head, medium and tail")
        if not self.ranking or len(self.ranking) != len(self.counts) or min(self.counts) < 1:
            raise ValueError("a partition needs a positive voxel count for each ranked label")
        if list(zip(self.counts, self.ranking, strict=True)) != sorted(
            zip(self.counts, self.ranking, strict=True), key=lambda pair: (-pair[0], pair[1])
        ):
            raise ValueError("labels must be ranked by falling count, ties by label")

    @property
    def owners(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Labels of the head, medium and tail expert, as the network's option ``owners`` takes them."""
        return self.head, self.medium, self.tail

    @property
    def proportions(self) -> tuple[float, ...]:
        """P_(j) = V_(j) / V_fg, in the order of the ranking."""
        foreground = sum(self.counts)
        return tuple(count / foreground for count in self.counts)

    @property
    def gaps(self) -> tuple[float, ...]:
        """G_j = log(P_(j) / P_(j+1)), natural logarithm, for j = 1 to K'-1."""
        return log_gaps(self.counts)

    @property
    def absent(self) -> tuple[int, ...]:
        """Labels without a voxel, which have no place in the ranking."""
        ranked = set(self.ranking)
        return tuple(sorted(label for group in self.owners for label in group if label not in ranked))

    @property
    def breakpoints(self) -> tuple[int, int] | None:
        """(k_HM, k_MT): the ranks, counted from 1, after which head and medium end.

        None where the groups are no runs of the ranking (mode ``manual``). An empty medium gives equal ranks, an
        empty tail k_MT = K'.
        """
        ranked = set(self.ranking)
        head, medium, tail = ([label for label in group if label in ranked] for group in self.owners)
        if (*head, *medium, *tail) != self.ranking:
            return None
        return len(head), len(head) + len(medium)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON; proportions, gaps and breakpoints are there for readers and derived again on loading."""
        return {
            "mode": self.mode,
            "ranking": list(self.ranking),
            "counts": list(self.counts),
            "proportions": list(self.proportions),
            "gaps": list(self.gaps),
            "breakpoints": None if self.breakpoints is None else list(self.breakpoints),
            "head": list(self.head),
            "medium": list(self.medium),
            "tail": list(self.tail),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Partition:
        """The partition ``to_json`` wrote. Raises ValueError for anything else."""
        try:
            return cls(
                ranking=_integers(data["ranking"]),
                counts=_integers(data["counts"]),
                head=_integers(data["head"]),
                medium=_integers(data["medium"]),
                tail=_integers(data["tail"]),
                mode=data["mode"],
                warnings=tuple(str(line) for line in data["warnings"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a partition: {error}") from error


def log_gaps(counts: Sequence[int]) -> tuple[float, ...]:
    """G_j = log(P_(j) / P_(j+1)) for j = 1 to K'-1 from falling voxel counts."""
    # From the counts, not the proportions: equal ratios then give equal gaps, and ties are true ties.
    return tuple(math.log(larger / smaller) for larger, smaller in pairwise(counts))


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("labels and voxel counts must be lists of integers")
    return tuple(cast("list[int]", values))
