"""Dice of each expert on its own group for other depths and dilations (Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from ...method.log_gap import GROUPS
from .group_style import GROUP_COLORS, INK, columns_of_legend, write_headline

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
