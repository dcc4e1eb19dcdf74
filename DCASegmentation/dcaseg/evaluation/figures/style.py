"""The common style of the plots: titles, colors and markers of groups and methods; and saving them atomically."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from ...errors import OutputError
from ...imaging.writers import write_file
from ...rendering.layout import EXPERTS

Color = tuple[float, float, float]

INK = "#222222"
GROUP_MARKERS = {"head": "o", "medium": "s", "tail": "^"}
METHOD_MARKERS = ("D", "o", "v", "P", "X", "s", "<", ">")


def write_headline(figure: Figure, text: str) -> None:
    """Write ``text`` at the top left of the figure, wrapped to its width."""
    characters = max(20, int(figure.get_figwidth() * 12.5))
    figure.suptitle(textwrap.fill(text[:1].upper() + text[1:], characters), x=0.01, ha="left", fontsize=11)


def count_legend_columns(figure: Figure, entries: int, entry_inches: float = 1.8) -> int:
    """The number of legend columns that fit into the figure's width."""
    return max(1, min(entries, int(figure.get_figwidth() / entry_inches)))


def normalize_rgb(color: tuple[int, int, int]) -> Color:
    """Convert an RGB color from 0..255 to matplotlib's 0..1."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


GROUP_COLORS = {name: normalize_rgb(color) for _, name, color in EXPERTS}

FORMATS = (".png", ".pdf", ".svg")


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` (.png, .pdf or .svg), replacing an existing file.

    Raises OutputError for another format or a path that cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"The plot {path.name} has an unsupported format.", f"Use {', '.join(FORMATS)}.")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150))
