"""The rank of every organ when fewer cases are labelled, and how stable groups are (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...method.log_gap import GROUPS
from ...method.partition import Partition
from ...organs import Vocabulary
from ..label_ratios import MODES, Stability, ranking_of
from .group_style import GROUP_COLORS, GROUP_MARKERS, INK, rgb, write_headline


def label_ratio_figure(
    titles: Sequence[str],
    divisions: Sequence[Partition],
    stability: Sequence[Stability],
    vocabulary: Vocabulary,
    title: str,
) -> Figure:
    """On the left a line for each organ through its ranks in ``divisions``, one for each of ``titles``, its marker that
    of its group; on the right Kendall's tau and the organs that changed their group, over the number of cases."""
    wide = max(3.2, 1.15 * len(titles) + 1.6)
    high = max(4.6, 0.34 * len(vocabulary) + 1.3)
    figure = Figure(figsize=(wide + (3.6 if stability else 0), high), layout="constrained")
    write_headline(figure, title)
    if stability:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(wide, 3.6))[0]
        _draw_stability(right.subplots(2, 1, sharex=True), stability)
        axes = left.subplots()
    else:
        axes = figure.subplots()
    _draw_ranks(axes, titles, divisions, vocabulary)
    return figure


def _draw_ranks(axes: Axes, titles: Sequence[str], divisions: Sequence[Partition], vocabulary: Vocabulary) -> None:
    ranks = [{label: rank for rank, label in enumerate(ranking_of(one), start=1)} for one in divisions]
    places = range(len(titles))
    for organ in vocabulary:
        line = [rank[organ.label] for rank in ranks]
        axes.plot(places, line, color=rgb(organ.color), linewidth=2, zorder=1)
        axes.annotate(organ.name, (places[-1], line[-1]), (9, 0), textcoords="offset points", va="center", fontsize=9)
    for place, (division, rank) in enumerate(zip(divisions, ranks, strict=True)):
        for group, owned in zip(GROUPS, division.owners, strict=True):
            axes.scatter(
                [place] * len(owned), [rank[label] for label in owned], s=58, marker=GROUP_MARKERS[group],
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
    axes.set_xticks(places, titles)
    axes.set_xlabel("Labelled cases")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_stability(panels: Sequence[Axes], stability: Sequence[Stability]) -> None:
    taus, changes = panels
    for mode, style in zip(MODES, ("--", "-"), strict=True):
        rows = [row for row in stability if row.mode == mode]
        sizes = [row.size for row in rows]
        if mode == MODES[-1]:
            taus.plot(sizes, [row.tau for row in rows], color=INK, marker="o", label="mean")
            taus.plot(sizes, [row.least_tau for row in rows], color="#999999", marker="v", label="least")
        changes.plot(sizes, [row.moved for row in rows], color=INK, linestyle=style, marker="o", label=mode)
    taus.set(ylabel="Kendall's tau\nwith all cases", ylim=(min(0.0, *(row.least_tau for row in stability)), 1.03))
    changes.set(ylabel="organs in another group\nthan with all cases (mean)", xlabel="cases drawn at random")
    changes.set_ylim(bottom=0)
    for axes in (taus, changes):
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
