"""Tables of methods in the layout of Tables 1 and 2 of the paper: mean Dice, mean ASD, Dice of each organ."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np

from ..organs import Vocabulary
from .metrics import ASD, DICE, Metric
from .scores import Scores
from .statistics import average_over_seeds

Format = Literal["csv", "markdown", "latex"]

# Styles of the best, second and third value.
_MARKDOWN = ("**{}** ¹", "{} ²", "{} ³")
_LATEX = (r"\textbf{{\textcolor{{red}}{{{}}}}}", r"\textcolor{{blue}}{{{}}}", r"\textcolor{{teal}}{{{}}}")


@dataclass(frozen=True)
class MethodTable:
    """A table with one row for each method. ``rows`` maps methods to scores of one or more seeds on the same cases.
    ``titles`` maps them to their names in the table, which are otherwise those of ``rows``.

    Dice is in percent with one decimal (means: two), as in the paper; several seeds give mean ± standard deviation.
    ``order`` lists the labels in column order; the default is the vocabulary's order. ``groups`` maps rows to groups,
    which get a column if any row has one. ``leading`` are columns before the means (such as check marks), ``further``
    are columns after the organs; both map row names to cells. A leading cell may have several lines, which become
    lines of the row in LaTeX. ``colors`` maps labels to LaTeX colors of organ titles.

    If ``marked``, Markdown and LaTeX mark the three best values of each column like the paper, except in ``unranked``
    rows (such as full supervision). Equal values share a mark. Distances are not marked if rows leave out different
    numbers of organs, since a method that finds only the easy ones would be the best. CSV has plain values.

    ``caption`` is a paragraph below the Markdown table, and a comment in LaTeX.
    """

    vocabulary: Vocabulary
    rows: Mapping[str, Sequence[Scores]]
    distance: Metric = ASD
    order: tuple[int, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    leading: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    further: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)
    marked: bool = False
    unranked: Collection[str] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""

    def make_header(self) -> list[str]:
        """The column titles."""
        organs = [self.vocabulary.by_label[label].abbreviation for label in self._get_labels()]
        group = ["Group"] if any(self.groups.values()) else []
        means = ["Avg. Dice", f"Avg. {self.distance.title}"]
        return [*group, "Method", *self.leading, *means, *organs, *self.further]

    def format_cells(self) -> list[list[str]]:
        """The cells of each row, without marks."""
        grouped = any(self.groups.values())
        return [
            [
                *([self.groups.get(name, "")] if grouped else []),
                self.titles.get(name, name),
                *(cells.get(name, "") for cells in self.leading.values()),
                *self._format_row(runs),
                *(cells.get(name, "") for cells in self.further.values()),
            ]
            for name, runs in self.rows.items()
        ]

    def render(self, form: Format) -> str:
        """The whole table as CSV, Markdown or LaTeX."""
        if form == "csv":
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerows(
                [self.make_header(), *_join_lines(self.format_cells(), "; ")]
            )
            return buffer.getvalue()
        if form == "markdown":
            header = self.make_header()
            first = header.index("Avg. Dice")
            lines = [header, ["---"] * first + ["---:"] * (len(header) - first)]
            lines += _join_lines(self._mark_best_values(self.format_cells(), _MARKDOWN), "<br>")
            return "".join(f"| {' | '.join(line)} |\n" for line in lines) + (self.caption and f"\n{self.caption}\n")
        return self._format_latex()

    def compute_ranks(self) -> dict[tuple[str, int], int]:
        """The ranks 1 to 3 by (row name, column): column 0 is mean Dice, 1 is mean distance, then come the organs."""
        ranked = [name for name in self.rows if name not in self.unranked]
        values = {name: self._format_means(self.rows[name]) for name in ranked}
        found: dict[tuple[str, int], int] = {}
        columns = set(range(2 + len(self._get_labels())))
        if len({sum(run.count_excluded(self.distance) for run in self.rows[name]) for name in ranked}) > 1:
            columns.discard(1)
        for column in columns:
            # Rank the printed values, so that equal text gets equal marks. A smaller distance is better.
            printed = {name: float(text) for name in ranked if (text := values[name][column]) != "-"}
            best = sorted(set(printed.values()), reverse=column != 1)[:3]
            # A Dice of 0 is never marked.
            found |= {
                (name, column): best.index(value) + 1
                for name, value in printed.items()
                if value in best and (column == 1 or value > 0)
            }
        return found

    def _format_latex(self) -> str:
        n_organs, further, header = len(self._get_labels()), list(self.further), self.make_header()
        n_names = header.index("Avg. Dice")
        rows = self._mark_best_values([list(map(_escape_latex, row)) for row in self.format_cells()], _LATEX)
        plain = {"Group": "", "Method": "Methods"}
        titles = [plain.get(title, _escape_latex(title)) for title in header[: n_names + 2]]
        heads = [rf"\multirow{{2}}{{*}}{{{title}}}" if title else "" for title in titles]
        heads.append(rf"\multicolumn{{{n_organs}}}{{{'c|' if further else 'c'}}}{{Average Dice of Each Class}}")
        heads += [rf"\multirow{{2}}{{*}}{{{_escape_latex(title)}}}" for title in further]
        titled = zip(self._get_labels(), header[n_names + 2 :], strict=False)
        colored = [rf"\textcolor{{{self.colors[k]}}}{{{title}}}" if k in self.colors else title for k, title in titled]
        second_line = [*[""] * (n_names + 2), *colored, *[""] * len(further)]
        columns = f"{'l' * n_names}|cc|{'c' * n_organs}" + ("|" + "l" * len(further) if further else "")
        lines = [
            *(f"% {line}" for line in textwrap.wrap(self.caption, 118)),
            "% Needs multirow, xcolor, amssymb and graphicx."
            + (" First red, second blue, third teal." if self.marked else ""),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            " & ".join(heads) + r" \\",
            " & ".join(second_line) + r" \\",
            r"\hline",
            *(_format_latex_groups(rows) if header[0] == "Group" else _format_latex_rows(rows)),
            r"\hline",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def _mark_best_values(self, cells: list[list[str]], styles: Sequence[str]) -> list[list[str]]:
        """The cells, with the three best values of each column in the style of their rank."""
        if not self.marked:
            return cells
        places, first = self.compute_ranks(), self.make_header().index("Avg. Dice")
        for name, row in zip(self.rows, cells, strict=True):
            for column in range(2 + len(self._get_labels())):
                place = places.get((name, column))
                if place is not None:
                    row[first + column] = styles[place - 1].format(row[first + column])
        return cells

    def _get_labels(self) -> tuple[int, ...]:
        return self.order or tuple(organ.label for organ in self.vocabulary)

    def _format_row(self, runs: Sequence[Scores]) -> list[str]:
        return [
            _format_spread(runs, DICE, 100),
            _format_spread(runs, self.distance, 1) if self._has_distance(runs) else "-",
            *self._format_means(runs)[2:],
        ]

    def _format_means(self, runs: Sequence[Scores]) -> list[str]:
        """The printed means of a method: Dice, distance, Dice of each organ."""
        distance = average_over_seeds(runs, self.distance).mean if self._has_distance(runs) else float("nan")
        dice = [_format_number(average_over_seeds(runs, DICE, [label]).mean * 100, 1) for label in self._get_labels()]
        return [_format_number(average_over_seeds(runs, DICE).mean * 100, 2), _format_number(distance, 2), *dice]

    def _has_distance(self, runs: Sequence[Scores]) -> bool:
        return all(self.distance in run.metrics for run in runs)


def _join_lines(rows: list[list[str]], separator: str) -> list[list[str]]:
    return [[cell.replace("\n", separator) for cell in row] for row in rows]


def _format_latex_rows(rows: list[list[str]]) -> list[str]:
    """LaTeX lines in which a row has as many lines as its longest cell; cells of one line span all of them."""
    lines: list[str] = []
    for row in rows:
        parts = [cell.split("\n") for cell in row]
        height = max(map(len, parts))
        lines += [r"\hline"] if height > 1 and lines else []
        for number in range(height):
            cells = [
                part[number]
                if len(part) > 1 or height == 1
                else rf"\multirow{{{height}}}{{*}}{{{part[0]}}}" * (not number)
                for part in parts
            ]
            lines.append(" & ".join(cells) + r" \\")
    return lines


def _format_latex_groups(rows: list[list[str]]) -> list[str]:
    """LaTeX lines in which the first cell, the group, is rotated and spans all rows of the group."""
    lines: list[str] = []
    for group, iterator in groupby(rows, key=lambda row: row[0]):
        members = list(iterator)
        span = rf"\multirow{{{len(members)}}}{{*}}{{\rotatebox{{90}}{{{group}}}}}" if group else ""
        lines += [r"\hline"] if lines else []
        lines += [" & ".join([span if number == 0 else "", *row[1:]]) + r" \\" for number, row in enumerate(members)]
    return lines


def _format_spread(runs: Sequence[Scores], metric: Metric, scale: float) -> str:
    mean, deviation = average_over_seeds(runs, metric)
    if not np.isfinite(deviation):
        return _format_number(mean * scale, 2)
    return f"{_format_number(mean * scale, 2)}±{_format_number(deviation * scale, 1)}"


def _format_number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if np.isfinite(value) else "-"


def _escape_latex(text: str) -> str:
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return text


_ESCAPES = {
    "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "β": r"$\beta$", "✓": r"\checkmark", "±": r"$\pm$"
}  # fmt: skip
