"""Log-gap analysis: the partition of the organs into head, medium and tail (slide "DCA: Divide", Fig. 2).

Classes are ranked by their share of the labeled foreground voxels. The largest gaps between the logarithms of
neighboring shares separate the groups. The code is pure Python because it runs once per dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal, cast, get_args

from ..errors import UserError

PartitionMode = Literal["top2", "sequential", "balanced", "fixed", "average", "manual"]


@dataclass(frozen=True)
class Partition:
    """The three groups of organs, with the voxel counts they were derived from.

    ``ranking`` holds the labels that have voxels, c_(1) to c_(K'), in descending order of ``counts`` (V_k, in voxels);
    ties are ordered by label. ``head``, ``medium`` and ``tail`` (S_H, S_M, S_T) together hold every label once, in the
    order of the ranking; labels without voxels come last in their group. ``mode`` is how the groups were found, and
    ``warnings`` are sentences for the user.

    Raises ValueError if these fields contradict each other.
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
            raise ValueError(f"{self.mode!r} is not a partition mode")
        if len(set(grouped)) != len(grouped) or not set(self.ranking) <= set(grouped):
            raise ValueError("every label must be in exactly one of head, medium and tail")
        if not self.ranking or len(self.ranking) != len(self.counts) or min(self.counts) < 1:
            raise ValueError("a partition needs a positive voxel count for each ranked label")
        if list(zip(self.counts, self.ranking, strict=True)) != sorted(
            zip(self.counts, self.ranking, strict=True), key=lambda pair: (-pair[0], pair[1])
        ):
            raise ValueError("labels must be ranked by descending count, ties by label")

    @property
    def owners(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Labels of the head, medium and tail expert, in the form of ``DCANet``'s option ``owners``."""
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
        """Labels without voxels, in ascending order; they are not in the ranking."""
        ranked = set(self.ranking)
        return tuple(sorted(label for group in self.owners for label in group if label not in ranked))

    @property
    def breakpoints(self) -> tuple[int, int] | None:
        """(k_HM, k_MT): the ranks, counted from 1, of the last head class and the last medium class.

        None if the groups are not consecutive in the ranking (possible in mode ``manual``). The two ranks are equal if
        the medium group is empty; k_MT = K' if the tail is empty.
        """
        ranked = set(self.ranking)
        head, medium, tail = ([label for label in group if label in ranked] for group in self.owners)
        if (*head, *medium, *tail) != self.ranking:
            return None
        return len(head), len(head) + len(medium)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data for JSON.

        Proportions, gaps and breakpoints are included for readers of the file; ``from_json`` derives them again.
        """
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
        """Read the output of ``to_json``. Raises ValueError if ``data`` is not a valid partition."""
        try:
            return cls(
                ranking=_parse_integers(data["ranking"]),
                counts=_parse_integers(data["counts"]),
                head=_parse_integers(data["head"]),
                medium=_parse_integers(data["medium"]),
                tail=_parse_integers(data["tail"]),
                mode=data["mode"],
                warnings=tuple(str(line) for line in data["warnings"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a partition: {error}") from error


def log_gaps(counts: Sequence[int]) -> tuple[float, ...]:
    """G_j = log(P_(j) / P_(j+1)), natural logarithm, for j = 1 to K'-1; ``counts`` are voxels in descending order."""
    # Counts give the same gaps as proportions, but without their rounding: equal ratios give exactly equal gaps.
    return tuple(math.log(larger / smaller) for larger, smaller in pairwise(counts))


def _parse_integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("labels and voxel counts must be lists of integers")
    return tuple(cast("list[int]", values))


NoSecondGap = Literal["error", "empty_tail", "guarded"]
GROUPS = ("head", "medium", "tail")

# A group with more than this share of the classes is nearly as imbalanced as the whole dataset, and gets a warning.
MAX_SHARE_OF_CLASSES = 0.7


def partition(
    voxel_counts: Mapping[int, int],
    mode: PartitionMode = "top2",
    *,
    no_second_gap: NoSecondGap = "error",
    head_above: float = 0.10,
    tail_below: float = 0.01,
    min_size: int = 2,
    groups: Sequence[Iterable[int]] | None = None,
    names: Mapping[int, str] | None = None,
) -> Partition:
    """Divide the organs into head, medium and tail.

    ``voxel_counts`` maps each label (1 to K) to its voxels in the labeled volumes. The modes are:

    - ``top2`` (default): the two largest gaps, wherever they are. It equals ``sequential`` if the largest gap comes
      before the second largest; if not, it prevents a head group that holds all but the last classes.
    - ``sequential``: the slides taken literally. k_HM is the largest gap, and k_MT the largest gap after it. If the
      largest gap is the last one, there is no gap after it; then ``no_second_gap`` decides: ``error`` raises an error,
      ``empty_tail`` leaves the tail empty, and ``guarded`` excludes the last gap from the search for k_HM.
    - ``balanced``: the two gaps with the largest sum that leave at least ``min_size`` classes in each group.
    - ``fixed``: head above the proportion ``head_above``, tail below ``tail_below``.
    - ``average``: three parts of the ranking of nearly equal size; extra classes go to the first parts.
    - ``manual``: the labels in ``groups`` (head, medium, tail).

    Of equal gaps the first is used. A single class with voxels becomes the head; two classes become head and tail. A
    label without voxels goes to the tail with a warning, unless ``groups`` says otherwise. ``names`` maps labels to
    organ names for the warnings.

    Raises UserError if no label has voxels, or if the mode and its options cannot divide these labels.
    """
    ranking, counts = _rank(voxel_counts)
    absent = tuple(label for label in sorted(voxel_counts) if label not in ranking)
    if mode not in get_args(PartitionMode):
        raise UserError(f"'{mode}' is not a partition mode.", f"Choose one of: {', '.join(get_args(PartitionMode))}.")
    if mode == "manual":
        sets = _split_manual(groups, ranking, absent)
    else:
        ends = _find_breakpoints(counts, mode, no_second_gap, (head_above, tail_below), min_size)
        sets = (ranking[: ends[0]], ranking[ends[0] : ends[1]], ranking[ends[1] :] + absent)
    head, medium, tail = sets
    return Partition(ranking, counts, head, medium, tail, mode, _collect_warnings(sets, absent, names or {}))


def _rank(voxel_counts: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if any(label < 1 for label in voxel_counts) or any(count < 0 for count in voxel_counts.values()):
        raise UserError(
            "Labels must be at least 1, and voxel counts cannot be negative.", "Leave out the background (label 0)."
        )
    present = sorted((-int(count), int(label)) for label, count in voxel_counts.items() if count > 0)
    if not present:
        raise UserError("The label maps contain no organ.", "Specify label maps that use the labels of the vocabulary.")
    return tuple(label for _, label in present), tuple(-count for count, _ in present)


def _find_breakpoints(
    counts: Sequence[int],
    mode: PartitionMode,
    no_second_gap: NoSecondGap,
    thresholds: tuple[float, float],
    min_size: int,
) -> tuple[int, int]:
    """(k_HM, k_MT) for a mode whose groups are consecutive in the ranking."""
    if mode == "fixed":
        return _split_fixed(counts, *thresholds)
    if len(counts) < 3:
        return 1, 1
    gaps = log_gaps(counts)
    if mode == "sequential":
        return _split_sequential(gaps, no_second_gap)
    if mode == "balanced":
        return _split_balanced(gaps, min_size)
    if mode == "average":
        size, left_over = divmod(len(counts), 3)
        return size + (left_over > 0), 2 * size + left_over
    largest = _find_largest_gap(gaps, _get_gap_ranks(gaps))
    second = _find_largest_gap(gaps, [j for j in _get_gap_ranks(gaps) if j != largest])
    return min(largest, second), max(largest, second)


def _get_gap_ranks(gaps: Sequence[float]) -> range:
    """The ranks of the gaps, j = 1 to K'-1, numbered as in the slides."""
    return range(1, len(gaps) + 1)


def _find_largest_gap(gaps: Sequence[float], ranks: Sequence[int]) -> int:
    """The rank of the largest gap among ``ranks``; of equal gaps, the first."""
    return max(ranks, key=lambda j: gaps[j - 1])


def _split_sequential(gaps: Sequence[float], no_second_gap: NoSecondGap) -> tuple[int, int]:
    ranks = _get_gap_ranks(gaps)
    k_hm = _find_largest_gap(gaps, ranks)
    if k_hm == len(gaps):
        if no_second_gap == "empty_tail":
            return k_hm, len(gaps) + 1
        if no_second_gap != "guarded":
            raise UserError(
                "The largest gap is before the last class, so there is no second gap to end the medium group.",
                "Use the mode top2, or set no_second_gap to empty_tail or guarded.",
            )
        k_hm = _find_largest_gap(gaps, ranks[:-1])
    return k_hm, _find_largest_gap(gaps, ranks[k_hm:])


def _split_balanced(gaps: Sequence[float], min_size: int) -> tuple[int, int]:
    n_classes = len(gaps) + 1
    allowed = [
        (k_hm, k_mt)
        for k_hm, k_mt in combinations(_get_gap_ranks(gaps), 2)
        if min(k_hm, k_mt - k_hm, n_classes - k_mt) >= max(min_size, 1)
    ]
    if not allowed:
        raise UserError(
            f"{n_classes} classes with voxels cannot form three groups of at least {min_size}.",
            "Choose a smaller minimum size.",
        )
    return max(allowed, key=lambda pair: gaps[pair[0] - 1] + gaps[pair[1] - 1])


def _split_fixed(counts: Sequence[int], head_above: float, tail_below: float) -> tuple[int, int]:
    if not 0 <= tail_below <= head_above <= 1:
        raise UserError(
            f"The thresholds {head_above:g} (head) and {tail_below:g} (tail) are not valid.",
            "Specify proportions from 0 to 1; the head's must not be below the tail's.",
        )
    foreground = sum(counts)
    head = sum(count / foreground > head_above for count in counts)
    tail = sum(count / foreground < tail_below for count in counts)
    return head, len(counts) - tail


def _split_manual(
    groups: Sequence[Iterable[int]] | None, ranking: tuple[int, ...], absent: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    if groups is None or len(groups) != 3:
        raise UserError("The mode manual needs three groups of labels.", "Specify the labels of head, medium and tail.")
    head, medium, tail = (list(group) for group in groups)
    named = [*head, *medium, *tail]
    for label in named:
        if named.count(label) > 1:
            raise UserError(f"Label {label} appears more than once.", "Put each label in one group only.")
        if label not in ranking and label not in absent:
            raise UserError(
                f"Label {label} is not in the vocabulary.", f"Choose from these labels: {sorted((*ranking, *absent))}."
            )
    missing = [label for label in ranking if label not in named]
    if missing:
        raise UserError(f"Label {missing[0]} is in no group.", "Put each label that has voxels in one group.")
    tail += [label for label in absent if label not in named]
    order = (*ranking, *absent)
    ordered = [tuple(label for label in order if label in group) for group in (head, medium, tail)]
    return ordered[0], ordered[1], ordered[2]


def _collect_warnings(
    sets: tuple[tuple[int, ...], ...], absent: tuple[int, ...], names: Mapping[int, str]
) -> tuple[str, ...]:
    n_classes = sum(len(group) for group in sets)
    messages = []
    for label in absent:
        title = next(title for title, group in zip(GROUPS, sets, strict=True) if label in group)
        messages.append(f"{_get_name(label, names)} has no voxels in the labeled volumes; it is in the {title} group.")
    for title, group in zip(GROUPS, sets, strict=True):
        if not group:
            messages.append(f"The {title} group is empty, so the network has no {title} expert.")
        elif len(group) == 1:
            messages.append(f"The {title} group has only one class: {_get_name(group[0], names)}.")
        if len(group) > MAX_SHARE_OF_CLASSES * n_classes:
            messages.append(f"The {title} group has {len(group)} of {n_classes} classes.")
    return tuple(messages)


def _get_name(label: int, names: Mapping[int, str]) -> str:
    return names.get(label, f"Label {label}")
