"""Plots Dice by organ for several methods (Fig. 1), and by expert for several depths and dilations (Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...method.log_gap import GROUPS, Partition
from ...organs import Vocabulary
from .style import GROUP_COLORS, INK, METHOD_MARKERS, count_legend_columns, write_headline

# Methods in a row of the legend.
_LEGEND_COLUMNS = 7


def plot_organ_dice(
    division: Partition, vocabulary: Vocabulary, dice: Mapping[str, Mapping[str, float]], bars: str, title: str
) -> Figure:
    """Plot the share of the labeled foreground (top) and Dice (bottom) of each organ, by decreasing share.

    ``dice`` maps method titles to Dice (0 to 1) by organ key. The method ``bars`` is drawn as bars in the colors of the
    organs' groups, the others as markers.
    """
    order = [*division.ranking, *division.absent]
    organs = [vocabulary.by_label[label] for label in order]
    group_of = {label: group for group, owned in zip(GROUPS, division.owners, strict=True) for label in owned}
    colors = [GROUP_COLORS[group_of[label]] for label in order]
    positions = range(len(order))
    figure = Figure(figsize=(max(7.0, 0.62 * len(order) + 2.2), 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    write_headline(figure, title)

    shares = [100 * share for share in division.proportions]
    above.bar(range(len(shares)), shares, color=colors[: len(shares)], edgecolor=INK, linewidth=0.6, width=0.7)
    for position, share in enumerate(shares):
        above.annotate(f"{share:.2g}", (position, share), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    above.set(yscale="log", ylabel="Share of the organs'\nvoxels (log scale)", ylim=(min(shares) / 2, 200))
    above.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    above.minorticks_off()
    handles = [Patch(facecolor=GROUP_COLORS[group], edgecolor=INK, label=group.capitalize()) for group in GROUPS]
    above.legend(handles=handles, ncols=3, frameon=False, loc="upper right")

    values = [dice[bars].get(organ.key, float("nan")) for organ in organs]
    below.bar(positions, values, color=colors, edgecolor=INK, linewidth=0.6, width=0.7, alpha=0.75, label=bars)
    others = [name for name in dice if name != bars]
    # If markers repeat, the methods still differ in color.
    for name, marker, offset in zip(others, cycle(METHOD_MARKERS), _compute_offsets(len(others)), strict=False):
        values = [dice[name].get(organ.key, float("nan")) for organ in organs]
        below.plot(
            [position + offset for position in positions], values, linestyle="none", marker=marker, markersize=7,
            label=name, markeredgecolor="white", markeredgewidth=0.7,
        )  # fmt: skip
    below.set(ylabel="Dice on the test cases", ylim=(0, 1), xlim=(-0.6, len(order) - 0.4))
    below.set_xticks(positions, [organ.name for organ in organs], rotation=40, ha="right", rotation_mode="anchor")
    # White in the legend, since the bars have the colors of the groups.
    legend = dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
    legend[bars] = Patch(facecolor="white", edgecolor=INK)
    below.legend(
        list(legend.values()), list(legend), ncols=min(len(legend), _LEGEND_COLUMNS), frameon=False, loc="lower left",
        bbox_to_anchor=(-0.01, 1),
    )  # fmt: skip
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def _compute_offsets(count: int) -> list[float]:
    """Small horizontal offsets, so that the markers of an organ do not overlap."""
    return [0.0] if count == 1 else [0.5 * (index / (count - 1) - 0.5) for index in range(count)]


Spread = tuple[float, float]
_OF_PAPER = {"head": ("shallow", 2), "medium": ("V-Net", 1), "tail": ("deep", 1)}
_TITLES = {"head": "Head expert", "medium": "Medium expert", "tail": "Tail expert"}


def plot_expert_variants(
    dice: Mapping[str, Mapping[tuple[str, int], Spread]], paper: Mapping[str, Spread], title: str
) -> Figure:
    """Plot Dice of each group's organs by depth of the decoder, with a line for each dilation (Fig. 7).

    There is a panel for each group in ``dice``, which maps (depth, dilation) to mean and deviation over seeds. A ring
    marks the combination that the paper gives this expert. A dotted line shows ``paper``, the Dice of DCA's own three
    experts together.
    """
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
                [position + shift for position in range(len(depths))], [mean for mean, _ in spreads],
                [deviation for _, deviation in spreads], color=GROUP_COLORS[group], markeredgecolor=INK, ecolor=INK,
                elinewidth=0.9, capsize=3, marker=marker, markersize=8, linestyle=style, label=f"dilation {dilation}",
            )  # fmt: skip
            if _OF_PAPER[group][1] == dilation and _OF_PAPER[group][0] in depths:
                position = depths.index(_OF_PAPER[group][0])
                axes.plot(
                    position + shift, spreads[position][0], marker="o", markersize=17, markerfacecolor="none",
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
        handles, names, loc="outside lower center", ncols=count_legend_columns(figure, 4, 2.2), frameon=False,
        fontsize=9, markerscale=0.7,
    )  # fmt: skip
    return figure
