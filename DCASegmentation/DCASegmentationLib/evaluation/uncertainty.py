"""How far a mean may be trusted: over seeds of the training, and over the cases of the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .metrics import DICE, Metric
from .scores import Scores, mean_of_organs


class MeanAndSpread(NamedTuple):
    """A mean and its standard deviation (n - 1) over runs; the latter is NaN for one run."""

    mean: float
    deviation: float


def over_seeds(runs: Sequence[Scores], metric: Metric = DICE, labels: Sequence[int] | None = None) -> MeanAndSpread:
    """Mean over runs of each run's mean over organs, and its spread. Raises ValueError for no run."""
    if not runs:
        raise ValueError("there is no run to take the mean of")
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
    """The percentile interval of the mean over organs when the test cases are drawn anew, with replacement.

    It tells of the choice of cases, not of the training's seed. With few cases it is too narrow, if anything.
    Raises ValueError without a case.
    """
    table = scores.table(metric)
    if not len(table):
        raise ValueError("there is no case to draw")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(table), size=(samples, len(table)))
    means = np.array([mean_of_organs(table[rows], labels) for rows in drawn])
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)
