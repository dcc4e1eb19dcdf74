"""How groups of organs and methods look in the plots: color, and shape for those who see no color."""

from __future__ import annotations

from ...figures.palette import EXPERTS

Color = tuple[float, float, float]

INK = "#222222"
GROUP_MARKERS = {"head": "o", "medium": "s", "tail": "^"}
METHOD_MARKERS = ("D", "o", "v", "P", "X", "s", "<", ">")


def rgb(color: tuple[int, int, int]) -> Color:
    """A color of 0 to 255 as matplotlib takes it."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


GROUP_COLORS = {name: rgb(color) for _, name, color in EXPERTS}
