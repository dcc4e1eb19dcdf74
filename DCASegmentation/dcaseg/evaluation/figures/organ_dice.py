"""Dice of every organ for several methods (Fig. 6), and of each expert for other depths and dilations (Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...method.log_gap import GROUPS, Partition
from ...organs import Vocabulary
from .style import GROUP_COLORS, INK, METHOD_MARKERS, columns_of_legend, write_headline

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


Spread = tuple[float, float]
_OF_PAPER = {"head": ("shallow", 2), "medium": ("V-Net", 1), "tail": ("deep", 1)}
_TITLES = {"head": "Head expert", "medium": "Medium expert", "tail": "Tail expert"}


def expert_variant_figure(
    dice: Mapping[str, Mapping[tuple[str, int], Spread]], paper: Mapping[str, Spread], title: str
) -> Figure:
    """A panel for each group in ``dice``: over depth, a line for each dilation, mean and deviation over seeds of the
    Dice of the group's organs. The combination that the paper gives this expert has a ring, and ``paper``, DCA's own
    three experts together, is a dashed line."""
    groups = [group for group in GROUPS if group in dice]
    figure = Figure(figsize=(3.4 * len(groups) + 0.6, 4.1), layout="constrained")
    write_headline(figure, title)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        depths = list(dict.fromkeys(depth for depth, _ in dice[group]))
        dilations = sorted({dilation for _, dilation in dice[group]})
        for dilation, marker, style, shift in zip(dilations, ("o", "s"), ("-", "--"), (-0.05, 0.05), strict=False):
            spreads = [dice[group][depth, dilation] for depth in depths]
            axes.errorbar(
                [place + shift for place in range(len(depths))], [mean for mean, _ in spreads],
                [deviation for _, deviation in spreads], color=GROUP_COLORS[group], markeredgecolor=INK, ecolor=INK,
                elinewidth=0.9, capsize=3, marker=marker, markersize=8, linestyle=style, label=f"dilation {dilation}",
            )  # fmt: skip
            if _OF_PAPER[group][1] == dilation and _OF_PAPER[group][0] in depths:
                place = depths.index(_OF_PAPER[group][0])
                axes.plot(
                    place + shift, spreads[place][0], marker="o", markersize=17, markerfacecolor="none",
                    markeredgecolor=INK, markeredgewidth=1.4, linestyle="none", label="the paper's",
                )  # fmt: skip
        axes.axhline(paper[group][0], color=INK, linestyle=":", linewidth=1.2, label="DCA's three experts together")
        axes.set_title(_TITLES[group], fontsize=11)
        axes.set_xticks(range(len(depths)), depths)
        axes.set(xlabel="Depth of the decoder", xlim=(-0.4, len(depths) - 0.6))
        axes.margins(y=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("Dice of the group's organs")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns_of_legend(figure, 4, 2.2), frameon=False, fontsize=9,
        markerscale=0.7,
    )  # fmt: skip
    return figure
