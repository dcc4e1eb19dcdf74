"""How the plots look: titles, colors of groups and methods, and saving them whole or not at all."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from ...errors import OutputError
from ...rendering.layout import EXPERTS

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

FORMATS = (".png", ".pdf", ".svg")


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as .png, .pdf or .svg, replacing what is there.

    Raises OutputError for another format or a path that cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path.name}: plots cannot be written in that format.", f"Use {', '.join(FORMATS)}.")
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.", "Choose another place.") from None
    finally:
        temporary.unlink(missing_ok=True)
