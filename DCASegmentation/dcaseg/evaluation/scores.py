"""A table of scores for each case, organ and metric, with means over cases, organs and groups."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..imaging.writers import write_file
from ..organs import Vocabulary
from .metrics import DICE, Metric


@dataclass
class Scores:
    """Scores of the K organs of ``vocabulary`` in each case. NaN marks a score that does not count.

    ``values`` maps metric keys to one array (K,) for each case, in the order of the vocabulary's labels.
    """

    vocabulary: Vocabulary
    metrics: tuple[Metric, ...] = (DICE,)
    cases: list[str] = field(default_factory=list)
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, case: str, scores: Mapping[str, np.ndarray]) -> None:
        """Add the scores (K,) of a case, by metric key. Raises ValueError for another shape."""
        for metric in self.metrics:
            if scores[metric.key].shape != (len(self.vocabulary),):
                raise ValueError(
                    f"expected a score for each of {len(self.vocabulary)} organs, not {scores[metric.key].shape}"
                )
        self.cases.append(case)
        for metric in self.metrics:
            self.values.setdefault(metric.key, []).append(np.asarray(scores[metric.key], float))

    def to_array(self, metric: Metric = DICE) -> np.ndarray:
        """Scores (cases, K)."""
        return np.array(self.values.get(metric.key, [])).reshape(-1, len(self.vocabulary))

    def average_by_organ(self, metric: Metric = DICE) -> dict[str, float]:
        """Mean over cases by organ key; NaN if no case counts."""
        return dict(zip(self.vocabulary.by_key, mean_or_nan(self.to_array(metric), axis=0).tolist(), strict=True))

    def average_by_case(self, metric: Metric = DICE) -> dict[str, float]:
        """Mean over organs by case."""
        return dict(zip(self.cases, mean_or_nan(self.to_array(metric), axis=1).tolist(), strict=True))

    def mean(self, labels: Sequence[int] | None = None, metric: Metric = DICE) -> float:
        """Mean over organs (all, or ``labels``) of the mean over cases, as in the paper's tables."""
        return mean_of_organs(self.to_array(metric), labels)

    def average_by_group(self, groups: Mapping[str, Sequence[int]], metric: Metric = DICE) -> dict[str, float]:
        """Mean of each group of labels, such as head, medium and tail, by the group's name."""
        return {name: self.mean(labels, metric) for name, labels in groups.items()}

    def count_excluded(self, metric: Metric = DICE) -> int:
        """Number of scores that do not count."""
        return int(np.isnan(self.to_array(metric)).sum())

    def write_csv(self, path: Path) -> None:
        """Write a line for each case and one for the mean, for each metric. A score that does not count is empty.

        Raises OutputError if ``path`` cannot be written.
        """
        text = io.StringIO()
        self._write_rows(csv.writer(text))
        write_file(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8", newline=""))

    def _write_rows(self, writer: Any) -> None:
        several = len(self.metrics) > 1
        writer.writerow([*(["metric"] if several else []), "case", *self.vocabulary.by_key, "mean"])
        for metric in self.metrics:
            first = [metric.key] if several else []
            for case, row in zip(self.cases, self.to_array(metric), strict=True):
                writer.writerow([*first, case, *map(_format_score, row), _format_score(mean_or_nan(row[None], 1)[0])])
            means = self.average_by_organ(metric).values()
            writer.writerow([*first, "mean", *map(_format_score, means), _format_score(self.mean(metric=metric))])


def mean_of_organs(table: np.ndarray, labels: Sequence[int] | None = None) -> float:
    """Mean over organs of the mean over cases of a table (cases, K)."""
    columns = mean_or_nan(table, axis=0)
    chosen = columns if labels is None else columns[[label - 1 for label in labels]]
    return float(mean_or_nan(chosen[None], axis=1)[0])


def mean_or_nan(table: np.ndarray, axis: int) -> np.ndarray:
    """Means along an axis that ignore NaN; NaN without a warning if all values are NaN."""
    counts = np.sum(~np.isnan(table), axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nansum(table, axis=axis) / counts)


def _format_score(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""
