"""How the plots look: their headlines; groups of organs and methods in color, and in shape for who sees no color."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

from ...figures.palette import EXPERTS

Color = tuple[float, float, float]

INK = "#222222"
GROUP_MARKERS = {"head": "o", "medium": "s", "tail": "^"}
METHOD_MARKERS = ("D", "o", "v", "P", "X", "s", "<", ">")


def write_headline(figure: Figure, text: str) -> None:
    """``text`` over the whole figure, left, in as many lines as its width needs."""
    letters = max(20, int(figure.get_figwidth() * 12.5))
    figure.suptitle(textwrap.fill(text, letters), x=0.01, ha="left", fontsize=11)


def columns_of_legend(figure: Figure, entries: int, entry_inches: float = 1.8) -> int:
    """How many entries of a legend go side by side."""
    return max(1, min(entries, int(figure.get_figwidth() / entry_inches)))


def rgb(color: tuple[int, int, int]) -> Color:
    """A color of 0 to 255 as matplotlib takes it."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


GROUP_COLORS = {name: rgb(color) for _, name, color in EXPERTS}
