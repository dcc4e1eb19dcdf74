"""Methods in rows, as Tables 1 and 2 of the paper: mean Dice, mean ASD, Dice of every organ."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..organs import Vocabulary
from .metrics import ASD, DICE, Metric
from .scores import Scores
from .uncertainty import over_seeds

Format = Literal["csv", "markdown", "latex"]


@dataclass(frozen=True)
class MethodTable:
    """``rows`` are methods, each with the scores of one or more seeds on the same cases.

    Dice is in percent with one decimal (means: two), as in the paper; several seeds give mean ± standard deviation.
    ``order`` are the labels in the order of the columns, by default the vocabulary's.
    """

    vocabulary: Vocabulary
    rows: Mapping[str, Sequence[Scores]]
    distance: Metric = ASD
    order: tuple[int, ...] = ()

    def header(self) -> list[str]:
        """Titles of the columns."""
        organs = [self.vocabulary.by_label[label].abbreviation for label in self._labels()]
        return ["Method", "Avg. Dice", f"Avg. {self.distance.title}", *organs]

    def cells(self, plus_minus: str = "±") -> list[list[str]]:
        """Each method's cells."""
        return [self._row(name, runs, plus_minus) for name, runs in self.rows.items()]

    def text(self, form: Format) -> str:
        """The whole table."""
        if form == "csv":
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerows([self.header(), *self.cells()])
            return buffer.getvalue()
        if form == "markdown":
            header = self.header()
            lines = [header, ["---", *["---:"] * (len(header) - 1)], *self.cells()]
            return "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return self._latex()

    def _latex(self) -> str:
        organs = len(self._labels())
        lines = [
            rf"\begin{{tabular}}{{l|cc|{'c' * organs}}}",
            r"\hline",
            rf"\multirow{{2}}{{*}}{{Methods}} & \multirow{{2}}{{*}}{{Avg. Dice}} & "
            rf"\multirow{{2}}{{*}}{{Avg. {self.distance.title}}} & "
            rf"\multicolumn{{{organs}}}{{c}}{{Average Dice of Each Class}} \\",
            " & ".join(["", "", "", *self.header()[3:]]) + r" \\",
            r"\hline",
            *(" & ".join(map(_escaped, row)) + r" \\" for row in self.cells(r"$\pm$")),
            r"\hline",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def _labels(self) -> tuple[int, ...]:
        return self.order or tuple(organ.label for organ in self.vocabulary)

    def _row(self, name: str, runs: Sequence[Scores], plus_minus: str) -> list[str]:
        dice = [_number(over_seeds(runs, DICE, [label]).mean * 100, 1) for label in self._labels()]
        return [
            name,
            _spread(runs, DICE, 100, plus_minus),
            _spread(runs, self.distance, 1, plus_minus) if self._has_distance(runs) else "-",
            *dice,
        ]

    def _has_distance(self, runs: Sequence[Scores]) -> bool:
        return all(self.distance in run.metrics for run in runs)


def _spread(runs: Sequence[Scores], metric: Metric, scale: float, plus_minus: str) -> str:
    mean, deviation = over_seeds(runs, metric)
    if not np.isfinite(deviation):
        return _number(mean * scale, 2)
    return f"{_number(mean * scale, 2)}{plus_minus}{_number(deviation * scale, 1)}"


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if np.isfinite(value) else "-"


def _escaped(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&")
