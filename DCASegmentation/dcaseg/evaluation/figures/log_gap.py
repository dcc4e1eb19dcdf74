"""Plots organs by log proportion with the gaps between groups (Fig. 1 and 2), and their ranks at lower label ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...method.log_gap import GROUPS, Partition
from ...organs import Vocabulary
from ..label_ratios import MODES, Stability, rank_labels
from .style import GROUP_COLORS, GROUP_MARKERS, INK, normalize_rgb, save_figure, write_headline

_MODE_TITLES = {"sequential": "Sequential rule (slides)", "top2": "Two largest gaps (ours)"}


def draw_log_gap(partition: Partition, vocabulary: Vocabulary, path: Path) -> None:
    """Draw ``partition`` of the organs of ``vocabulary`` and write it to ``path`` (.png, .pdf or .svg).

    An existing file is replaced. Raises OutputError for another format or a path that cannot be written.
    """
    save_figure(plot_log_gap(partition, vocabulary), path)


def plot_log_gap(partition: Partition, vocabulary: Vocabulary) -> Figure:
    """The figure: a marker for each organ, colored by group, and an arrow for each gap between groups."""
    labels = [*partition.ranking, *partition.absent]
    figure = Figure(figsize=(max(6.4, 0.62 * len(labels) + 1.6), 4.8), layout="constrained")
    axes = figure.subplots()
    _set_up(axes, [vocabulary.by_label[label].name for label in labels], partition)
    axes.plot(range(len(partition.ranking)), partition.proportions, color="#999999", linewidth=1, zorder=1)
    for name, owned in zip(GROUPS, partition.owners, strict=True):
        _draw_group(axes, name, owned, partition)
    for position in range(len(partition.ranking), len(labels)):
        axes.text(position, 0.03, "no voxels", rotation=90, ha="center", va="bottom", color=INK, fontsize=9,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    breakpoints = sorted({rank for rank in partition.breakpoints or () if 0 < rank < len(partition.ranking)})
    for rank in breakpoints:
        # The curve falls, so there is room for text above it on the right and below it on the left.
        above = rank == breakpoints[0] and rank < len(partition.ranking) - 1
        _draw_gap(axes, rank, partition, above)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False, handletextpad=0.2)
    return figure


def _set_up(axes: Axes, names: Sequence[str], partition: Partition) -> None:
    axes.set_yscale("log")
    smallest, largest = partition.proportions[-1], partition.proportions[0]
    bottom, top = smallest / 2.6, largest * 2.5
    axes.set_ylim(bottom, top)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_ylabel("Share of the foreground voxels (log scale)")
    decades = range(math.floor(math.log10(bottom)), 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    visible = [tick for tick in ticks if bottom <= tick <= 1]
    axes.set_yticks(visible, [f"{100 * tick:g} %" for tick in visible])
    axes.minorticks_off()
    axes.set_title(f"Organs by volume, in three groups (mode {partition.mode})", loc="left", fontsize=12, pad=30)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_group(axes: Axes, name: str, owned: Sequence[int], partition: Partition) -> None:
    positions = [partition.ranking.index(label) for label in owned if label in partition.ranking]
    proportions = [partition.proportions[position] for position in positions]
    count = f"{len(owned)} organ" if len(owned) == 1 else f"{len(owned)} organs"
    axes.scatter(
        positions, proportions, s=70, color=GROUP_COLORS[name], edgecolor=INK, linewidth=0.8,
        marker=GROUP_MARKERS[name], zorder=3, label=f"{name.capitalize()} ({count})",
    )  # fmt: skip


def _draw_gap(axes: Axes, rank: int, partition: Partition, above: bool) -> None:
    """Draw the gap after ``rank``: a line between the groups, an arrow along the gap, and its size."""
    upper, lower = partition.proportions[rank - 1], partition.proportions[rank]
    middle = rank - 0.5
    axes.axvline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    arrow = {"arrowstyle": "<->", "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(middle, lower), xytext=(middle, upper), arrowprops=arrow, zorder=2)
    axes.annotate(
        f"gap {partition.gaps[rank - 1]:.2f}\n({upper / lower:.1f} times)",
        xy=(middle, upper if above else lower),
        xytext=(6, 2) if above else (-6, -2),
        textcoords="offset points",
        ha="left" if above else "right",
        va="bottom" if above else "top",
        fontsize=9,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        zorder=0.8,
    )


def plot_label_ratios(
    titles: Sequence[str],
    divisions: Sequence[Partition],
    stability: Sequence[Stability],
    vocabulary: Vocabulary,
    title: str,
) -> Figure:
    """Plot the ranks of the organs at several label ratios, and the stability of random subsets.

    On the left, a line for each organ connects its ranks in ``divisions`` (one for each of ``titles``), with a marker
    for its group. On the right are Kendall's tau and the number of organs in another group, by number of cases.
    """
    width = max(3.2, 1.15 * len(titles) + 1.6)
    height = max(4.6, 0.34 * len(vocabulary) + 1.3)
    figure = Figure(figsize=(width + (3.6 if stability else 0), height), layout="constrained")
    write_headline(figure, title)
    if stability:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(width, 3.6))[0]
        _draw_stability(right.subplots(2, 1, sharex=True), stability)
        axes = left.subplots()
    else:
        axes = figure.subplots()
    _draw_ranks(axes, titles, divisions, vocabulary)
    return figure


def _draw_ranks(axes: Axes, titles: Sequence[str], divisions: Sequence[Partition], vocabulary: Vocabulary) -> None:
    ranks = [{label: rank for rank, label in enumerate(rank_labels(division), start=1)} for division in divisions]
    columns = range(len(titles))
    for organ in vocabulary:
        line = [rank[organ.label] for rank in ranks]
        axes.plot(columns, line, color=normalize_rgb(organ.color), linewidth=2, zorder=1)
        axes.annotate(organ.name, (columns[-1], line[-1]), (9, 0), textcoords="offset points", va="center", fontsize=9)
    for column, (division, rank) in enumerate(zip(divisions, ranks, strict=True)):
        for group, owned in zip(GROUPS, division.owners, strict=True):
            axes.scatter(
                [column] * len(owned), [rank[label] for label in owned], s=58, marker=GROUP_MARKERS[group],
                color=[GROUP_COLORS[group]] * len(owned), edgecolor=INK, linewidth=0.8, zorder=2,
            )  # fmt: skip
    handles = [
        Line2D([], [], linestyle="none", marker=GROUP_MARKERS[group], markersize=8, color=GROUP_COLORS[group],
               markeredgecolor=INK, label=group.capitalize())
        for group in GROUPS
    ]  # fmt: skip
    axes.legend(handles=handles, ncols=3, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handletextpad=0)
    axes.set(ylabel="Rank by voxels", ylim=(len(vocabulary) + 0.6, 0.4), xlim=(-0.3, len(titles) - 0.1))
    axes.set_yticks(range(1, len(vocabulary) + 1))
    axes.set_xticks(columns, titles)
    axes.set_xlabel("Labeled cases")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_stability(panels: Sequence[Axes], stability: Sequence[Stability]) -> None:
    taus, changes = panels
    for mode, style in zip(MODES, ("--", "-"), strict=True):
        rows = [row for row in stability if row.mode == mode]
        sizes = [row.size for row in rows]
        if mode == MODES[-1]:
            taus.plot(sizes, [row.tau for row in rows], color=INK, marker="o", label="Mean")
            taus.plot(sizes, [row.min_tau for row in rows], color="#999999", marker="v", label="Lowest")
        # White markers on top keep equal curves apart.
        of_mode: dict[str, Any] = {"markerfacecolor": "white", "zorder": 3} if mode == MODES[0] else {}
        moved = [row.moved for row in rows]
        changes.plot(sizes, moved, color=INK, linestyle=style, marker="o", label=_MODE_TITLES[mode], **of_mode)
    taus.set(ylabel="Kendall's tau\nwith all cases", ylim=(min(0.0, *(row.min_tau for row in stability)), 1.03))
    changes.set(ylabel="Organs in another group\nthan with all cases (mean)", xlabel="Cases drawn at random")
    changes.set_ylim(bottom=0)
    for axes in (taus, changes):
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
