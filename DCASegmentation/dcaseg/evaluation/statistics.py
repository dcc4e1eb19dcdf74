"""How far a mean may be trusted: over seeds of the training, and over the cases of the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .metrics import DICE, Metric
from .scores import Scores, mean_of_organs, mean_or_nan


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


class Difference(NamedTuple):
    """A difference of means, and the ends of its interval over cases."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    runs: Sequence[Scores],
    others: Sequence[Scores],
    metric: Metric = DICE,
    labels: Sequence[int] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """How far ``runs`` lie above ``others`` on the same cases: mean over organs, interval by a paired bootstrap.

    Scores are averaged over seeds first; each draw takes the same cases of both, so that what makes a case hard for
    both falls out. Raises ValueError where there is no case, or the cases are not the same.
    """
    cases = runs[0].cases
    if not cases or any(each.cases != cases for each in (*runs, *others)):
        raise ValueError("a paired difference needs the same cases on both sides")
    ours, theirs = (mean_or_nan(np.array([each.table(metric) for each in side]), axis=0) for side in (runs, others))

    def difference(rows: np.ndarray) -> float:
        return mean_of_organs(ours[rows], labels) - mean_of_organs(theirs[rows], labels)

    drawn = np.random.default_rng(seed).integers(len(cases), size=(samples, len(cases)))
    tail = 50 * (1 - level)
    low, high = np.nanpercentile([difference(rows) for rows in drawn], [tail, 100 - tail])
    return Difference(difference(np.arange(len(cases))), float(low), float(high))
