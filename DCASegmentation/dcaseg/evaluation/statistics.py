"""The uncertainty of means: over training seeds and over test cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .metrics import DICE, Metric
from .scores import Scores, mean_of_organs, mean_or_nan


class MeanAndSpread(NamedTuple):
    """A mean over runs and the sample standard deviation (n - 1), which is NaN for one run."""

    mean: float
    deviation: float


def over_seeds(runs: Sequence[Scores], metric: Metric = DICE, labels: Sequence[int] | None = None) -> MeanAndSpread:
    """Mean and spread over runs of each run's mean over organs. Raises ValueError without runs."""
    if not runs:
        raise ValueError("the mean over seeds needs at least one run")
    means = np.array([run.mean(labels, metric) for run in runs])
    return MeanAndSpread(float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else float("nan"))


def bootstrap_interval(
    scores: Scores,
    metric: Metric = DICE,
    labels: Sequence[int] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval over test cases of the mean over organs.

    It covers the choice of test cases, not of the training seed. With few cases it tends to be too narrow. Raises
    ValueError without cases.
    """
    table = scores.table(metric)
    if not len(table):
        raise ValueError("a bootstrap interval needs at least one case")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(table), size=(samples, len(table)))
    means = np.array([mean_of_organs(table[rows], labels) for rows in drawn])
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)


class Difference(NamedTuple):
    """A difference of means, and its interval over cases from ``low`` to ``high``."""

    mean: float
    low: float
    high: float


def paired_difference(
    runs: Sequence[Scores],
    others: Sequence[Scores],
    metric: Metric = DICE,
    labels: Sequence[int] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference ``runs`` minus ``others`` of the mean over organs, with a paired bootstrap interval over cases.

    Scores are first averaged over seeds. Each draw takes the same cases on both sides, which cancels the difficulty of
    the cases. Raises ValueError if there are no cases or the cases differ.
    """
    cases = runs[0].cases
    if not cases or any(run.cases != cases for run in (*runs, *others)):
        raise ValueError("a paired difference needs the same cases on both sides")
    ours, theirs = (mean_or_nan(np.array([run.table(metric) for run in side]), axis=0) for side in (runs, others))

    def difference(rows: np.ndarray) -> float:
        return mean_of_organs(ours[rows], labels) - mean_of_organs(theirs[rows], labels)

    drawn = np.random.default_rng(seed).integers(len(cases), size=(samples, len(cases)))
    tail = 50 * (1 - level)
    low, high = np.nanpercentile([difference(rows) for rows in drawn], [tail, 100 - tail])
    return Difference(difference(np.arange(len(cases))), float(low), float(high))
