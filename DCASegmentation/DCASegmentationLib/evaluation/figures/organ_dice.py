"""Share of the voxels and Dice of every organ, several methods on top of each other (Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...method.log_gap import GROUPS
from ...method.partition import Partition
from ...organs import Vocabulary
from .group_style import GROUP_COLORS, INK, METHOD_MARKERS, write_headline

# Methods in a row of the legend.
_ACROSS = 7


def organ_dice_figure(
    division: Partition, vocabulary: Vocabulary, dice: Mapping[str, Mapping[str, float]], bars: str, title: str
) -> Figure:
    """Organs by falling share of the labelled foreground: above that share, below Dice.

    ``dice`` holds for each method's title the Dice (0 to 1) by organ key; the method ``bars`` is drawn as bars in the
    color of the organ's group, the others as markers.
    """
    order = [*division.ranking, *division.absent]
    organs = [vocabulary.by_label[label] for label in order]
    group_of = {label: group for group, owned in zip(GROUPS, division.owners, strict=True) for label in owned}
    colors = [GROUP_COLORS[group_of[label]] for label in order]
    places = range(len(order))
    figure = Figure(figsize=(max(7.0, 0.62 * len(order) + 2.2), 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    write_headline(figure, title)

    shares = [100 * share for share in division.proportions]
    above.bar(range(len(shares)), shares, color=colors[: len(shares)], edgecolor=INK, linewidth=0.6, width=0.7)
    for place, share in enumerate(shares):
        above.annotate(f"{share:.2g}", (place, share), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    above.set(yscale="log", ylabel="Share of the organs'\nvoxels (log scale)", ylim=(min(shares) / 2, 200))
    above.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    above.minorticks_off()
    handles = [Patch(facecolor=GROUP_COLORS[group], edgecolor=INK, label=group.capitalize()) for group in GROUPS]
    above.legend(handles=handles, ncols=3, frameon=False, loc="upper right")

    values = [dice[bars].get(organ.key, float("nan")) for organ in organs]
    below.bar(places, values, color=colors, edgecolor=INK, linewidth=0.6, width=0.7, alpha=0.75, label=bars)
    others = [name for name in dice if name != bars]
    # Of more methods than there are markers, those with the same marker differ in color.
    for name, marker, spread in zip(others, cycle(METHOD_MARKERS), _spread(len(others)), strict=False):
        found = [dice[name].get(organ.key, float("nan")) for organ in organs]
        below.plot(
            [place + spread for place in places], found, linestyle="none", marker=marker, markersize=7, label=name,
            markeredgecolor="white", markeredgewidth=0.7,
        )  # fmt: skip
    below.set(ylabel="Dice on the test cases", ylim=(0, 1), xlim=(-0.6, len(order) - 0.4))
    below.set_xticks(places, [organ.name for organ in organs], rotation=40, ha="right", rotation_mode="anchor")
    # Unfilled: the bars have the colors of the groups.
    shown = dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
    shown[bars] = Patch(facecolor="white", edgecolor=INK)
    below.legend(
        list(shown.values()), list(shown), ncols=min(len(shown), _ACROSS), frameon=False, loc="lower left",
        bbox_to_anchor=(-0.01, 1),
    )  # fmt: skip
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def _spread(count: int) -> list[float]:
    """Small shifts, so that markers of one organ do not hide each other."""
    return [0.0] if count == 1 else [0.5 * (index / (count - 1) - 0.5) for index in range(count)]
