"""Dice of many cases as a table: per case, per organ, per group."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..organs import Vocabulary


@dataclass
class Scores:
    """Dice of the organs of ``vocabulary`` in cases; NaN where a case has the organ on neither side."""

    vocabulary: Vocabulary
    cases: list[str] = field(default_factory=list)
    dice: list[np.ndarray] = field(default_factory=list)

    def add(self, case: str, dice: np.ndarray) -> None:
        """``dice`` is (K,) in the order of the vocabulary's labels."""
        if dice.shape != (len(self.vocabulary),):
            raise ValueError(f"{len(self.vocabulary)} organs need as many scores, not {dice.shape}")
        self.cases.append(case)
        self.dice.append(dice)

    def by_organ(self) -> dict[str, float]:
        """Mean Dice over cases for each organ's key; NaN where no case has the organ."""
        table = np.array(self.dice)
        return {
            organ.key: float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
            for organ, column in zip(self.vocabulary, table.T, strict=True)
        }

    def mean(self, labels: Sequence[int] | None = None) -> float:
        """Mean over organs of the mean over cases, as the paper's tables; of ``labels`` only, where given."""
        by_organ = self.by_organ()
        chosen = [by_organ[organ.key] for organ in self.vocabulary if labels is None or organ.label in labels]
        return float(np.nanmean(chosen)) if chosen else float("nan")

    def by_group(self, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Mean Dice of each group of labels, such as head, medium and tail."""
        return {name: self.mean(labels) for name, labels in groups.items()}

    def write_csv(self, path: Path) -> None:
        """One line for each case and one for the mean; a field is empty where the organ is on neither side."""
        by_organ = self.by_organ()
        part = path.with_name(path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["case", *by_organ, "mean"])
            for case, row in zip(self.cases, self.dice, strict=True):
                writer.writerow([case, *map(_field, row), _field(np.nanmean(row))])
            writer.writerow(["mean", *map(_field, by_organ.values()), _field(self.mean())])
        part.replace(path)


def _field(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""
