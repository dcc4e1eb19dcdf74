"""The uncertainty of means: over training seeds and over test cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .metrics import DICE, Metric
from .scores import Scores, mean_or_nan


class MeanAndSpread(NamedTuple):
    """A mean over runs and the sample standard deviation (n - 1), which is NaN for one run."""

    mean: float
    deviation: float


def average_over_seeds(
    runs: Sequence[Scores], metric: Metric = DICE, labels: Sequence[int] | None = None
) -> MeanAndSpread:
    """Mean and spread over runs of each run's mean over organs. Raises ValueError without runs."""
    if not runs:
        raise ValueError("the mean over seeds needs at least one run")
    means = np.array([run.mean(labels, metric) for run in runs])
    return MeanAndSpread(float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else float("nan"))


MIN_CASES = 5
"""With fewer cases, an interval would say more than the data can: percentile intervals of three cover 73 % of means."""


def compute_bootstrap_interval(
    scores: Scores,
    metric: Metric = DICE,
    labels: Sequence[int] | None = None,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval over test cases of the mean over organs; NaN with fewer than ``MIN_CASES`` cases.

    It covers the choice of test cases, not of the training seed, and takes the cases as independent, so it is too
    narrow for several CTs of one person. Percentile interval, expanded for small samples (Hesterberg, "What teachers
    should know about the bootstrap", Am. Stat. 2015). Raises ValueError without cases.
    """
    table = scores.to_array(metric)
    if not len(table):
        raise ValueError("a bootstrap interval needs at least one case")
    return _compute_interval(lambda drawn: _compute_means(table, drawn, labels), len(table), level, samples, seed)


class Difference(NamedTuple):
    """A difference of means, and its interval over cases from ``low`` to ``high``."""

    mean: float
    low: float
    high: float


def compute_paired_difference(
    runs: Sequence[Scores],
    others: Sequence[Scores],
    metric: Metric = DICE,
    labels: Sequence[int] | None = None,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Difference ``runs`` minus ``others`` of the mean over organs, with a paired bootstrap interval over cases.

    Each side's mean is that over its runs. Each draw takes the same cases on both sides, which cancels the difficulty
    of the cases. The interval is that of ``compute_bootstrap_interval``. Raises ValueError if there are no cases or the
    cases differ.
    """
    cases = runs[0].cases
    if not cases or any(run.cases != cases for run in (*runs, *others)):
        raise ValueError("a paired difference needs the same cases on both sides")
    ours, theirs = ([run.to_array(metric) for run in side] for side in (runs, others))

    def compute_difference(drawn: np.ndarray) -> np.ndarray:
        # Runs are averaged last: an organ may count in one run only, if only that run has invented it.
        means = [np.mean([_compute_means(table, drawn, labels) for table in side], axis=0) for side in (ours, theirs)]
        return np.asarray(means[0] - means[1])

    low, high = _compute_interval(compute_difference, len(cases), level, samples, seed)
    return Difference(float(compute_difference(np.arange(len(cases))[None])[0]), low, high)


def _compute_interval(
    means_of: Callable[[np.ndarray], np.ndarray], n_cases: int, level: float, samples: int, seed: int
) -> tuple[float, float]:
    """The expanded percentile interval of ``means_of`` draws (samples, n_cases) of cases."""
    if n_cases < MIN_CASES:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(n_cases, size=(samples, n_cases))
    # A part at a time, for the memory.
    means = np.concatenate([means_of(part) for part in np.array_split(drawn, max(1, samples * n_cases // 100_000))])
    tail = 100 * NormalDist().cdf(-math.sqrt(n_cases / (n_cases - 1)) * _t_quantile((1 + level) / 2, n_cases - 1))
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _compute_means(table: np.ndarray, drawn: np.ndarray, labels: Sequence[int] | None) -> np.ndarray:
    """Mean over organs of the mean over cases of a table (cases, K), for each row of ``drawn`` (draws, cases)."""
    columns = mean_or_nan(table[drawn], axis=1)
    return mean_or_nan(columns if labels is None else columns[:, [label - 1 for label in labels]], axis=1)


def _t_quantile(probability: float, degrees: int) -> float:
    """Quantile above 0.5 of Student's t distribution with at least 4 ``degrees`` of freedom."""
    steps = np.linspace(0, 100, 200_001)
    density = (1 + (steps[:-1] + steps[1] / 2) ** 2 / degrees) ** (-(degrees + 1) / 2)
    below = 0.5 + 0.5 * np.cumsum(density) / density.sum()
    return float(np.interp(probability, below, steps[1:]))
