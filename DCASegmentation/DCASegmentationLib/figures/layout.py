"""Panels put together to one picture, with titles, side letters, scales and legends."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from DCASegmentationLib.errors import OutputError
from DCASegmentationLib.figures.case import Panel
from DCASegmentationLib.figures.palette import EXPERTS, color_table
from DCASegmentationLib.organs import Organ

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_INCHES = 16.0
_DPI = 150
_GAP = 0.06  # inches between panels
_TITLE_HEIGHT, _PANEL_TITLE_HEIGHT, _ORGANS_HEIGHT, _SCALES_HEIGHT = 0.72, 0.3, 0.82, 0.55
_LEGEND_COLUMNS = 8


@dataclass(frozen=True)
class Picture:
    """Two rows of panels and what their colors mean. ``organs`` are those shown, ``missing`` those not found."""

    title: str
    subtitle: str
    views: Sequence[Panel]
    maps: Sequence[Panel]
    organs: Sequence[Organ]
    missing: Sequence[Organ]


def row_pixels(aspects: Sequence[float]) -> list[tuple[int, int]]:
    """Size (columns, rows) of each panel of a row that fills the width of the picture, from width over height."""
    height = (_WIDTH_INCHES - _GAP * (len(aspects) + 1)) / sum(aspects)
    return [(round(height * aspect * _DPI), round(height * _DPI)) for aspect in aspects]


def write_picture(picture: Picture, path: Path) -> None:
    """Compose the picture and write it as PNG; nothing half-written is left. Raises OutputError."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({"font.size": 11, "font.family": "sans-serif"}):
        figure = compose(picture)
        FigureCanvasAgg(figure)
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
                finished = Path(folder, path.name)
                figure.savefig(finished, format="png", dpi=_DPI)
                finished.replace(path)
        except OSError as error:
            raise OutputError(
                f"The picture cannot be written to {path}: {error.strerror or error}.",
                "Choose an existing folder you may write to, with free space.",
            ) from error


def compose(picture: Picture) -> Figure:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure

    rows = [row for row in (picture.views, picture.maps) if row]
    heights = [row[0].pixels.shape[0] / _DPI for row in rows]
    total = _TITLE_HEIGHT + _ORGANS_HEIGHT + sum(heights) + _PANEL_TITLE_HEIGHT * len(rows)
    total += _SCALES_HEIGHT if picture.maps else 0.0
    figure = Figure(figsize=(_WIDTH_INCHES, total), facecolor="white")
    figure.text(_GAP / _WIDTH_INCHES, 1 - 0.12 / total, picture.title, fontsize=19, weight="bold", va="top")
    figure.text(_GAP / _WIDTH_INCHES, 1 - 0.45 / total, picture.subtitle, fontsize=11.5, color="0.3", va="top")

    top = total - _TITLE_HEIGHT
    top = _add_row(figure, picture.views, top, heights[0], total)
    _add_organ_legend(figure, picture, top, total)
    top -= _ORGANS_HEIGHT
    if picture.maps:
        top = _add_row(figure, picture.maps, top, heights[1], total)
        _add_map_legends(figure, picture.maps, top, total)
    return figure


def _add_row(figure: Figure, panels: Sequence[Panel], top: float, height: float, total: float) -> float:
    """Place a row below ``top`` (inches from the bottom); returns where it ends."""
    bottom = top - _PANEL_TITLE_HEIGHT - height
    left = _GAP
    for panel in panels:
        width = height * panel.aspect
        axes = figure.add_axes((left / _WIDTH_INCHES, bottom / total, width / _WIDTH_INCHES, height / total))
        _show(axes, panel)
        left += width + _GAP
    return bottom


def _show(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.pixels, interpolation="none", aspect="auto")
    axes.set_axis_off()
    axes.set_title(panel.title, loc="left", fontsize=12.5, pad=5)
    letters = "white" if panel.pixels[:, :10].mean() < 128 else "0.25"
    for x, letter, side in ((0.012, panel.left, "left"), (0.988, panel.right, "right")):
        text = axes.text(
            x, 0.5, letter, ha=side, va="center", color=letters, fontsize=13, weight="bold", transform=axes.transAxes
        )
        if letters == "white":
            _edge_in_black(text)
    if panel.mm_per_pixel > 0:
        _add_scale_bar(axes, panel)


def _add_scale_bar(axes: Axes, panel: Panel) -> None:
    rows, columns = panel.pixels.shape[:2]
    length = 50.0 / panel.mm_per_pixel
    end, level = columns * 0.975, rows * 0.955
    (bar,) = axes.plot([end - length, end], [level, level], color="white", linewidth=2.2, solid_capstyle="butt")
    text = axes.text(
        end - length / 2, level - rows * 0.012, "5 cm", color="white", fontsize=9.5, ha="center", va="bottom"
    )
    _edge_in_black(bar, 4.0)
    _edge_in_black(text)


def _edge_in_black(artist: Artist, width: float = 2.5) -> None:
    """White that can be read on bone."""
    from matplotlib.patheffects import withStroke

    artist.set_path_effects([withStroke(linewidth=width, foreground="black")])


def _add_organ_legend(figure: Figure, picture: Picture, top: float, total: float) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_unit(organ.color), label=organ.name) for organ in picture.organs]
    if handles:
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.0, (top - 0.02) / total), ncols=_LEGEND_COLUMNS,
            frameon=False, fontsize=11, handlelength=1.1, handleheight=1.0, columnspacing=1.6, borderaxespad=0.25,
        )  # fmt: skip
    if picture.missing:
        names = ", ".join(organ.name.lower() for organ in picture.missing)
        figure.text(_GAP / _WIDTH_INCHES, (top - _ORGANS_HEIGHT + 0.07) / total, f"Not found: {names}",
                    fontsize=10, color="0.35", va="bottom")  # fmt: skip


def _add_map_legends(figure: Figure, panels: Sequence[Panel], top: float, total: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import Patch

    left = _GAP / _WIDTH_INCHES
    width = 1.6 * panels[0].pixels.shape[1] / _DPI / _WIDTH_INCHES
    axes = figure.add_axes((left, (top - 0.24) / total, width, 0.13 / total))
    scale = ScalarMappable(Normalize(0.0, 1.0), ListedColormap((color_table("Viridis") / 255.0).tolist()))
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=[0.0, 1 / 3, 0.5, 1.0])
    bar.ax.set_xticklabels(["0 none", "1/3 even share", "0.5", "1 this expert alone"], fontsize=10)
    bar.outline.set_visible(False)
    # The outer labels stay within the bar.
    bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
    bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    figure.text(left + width + 0.008, (top - 0.175) / total, "attention to an expert (the three sum to 1)",
                fontsize=11, va="center")  # fmt: skip
    experts = [Patch(color=_unit(color), label=f"{name} expert") for _, name, color in EXPERTS]
    figure.legend(
        handles=experts, loc="upper right", bbox_to_anchor=(1.0, (top - 0.04) / total), ncols=3, frameon=False,
        fontsize=11, handlelength=1.1, handleheight=1.0, columnspacing=1.4, borderaxespad=0.25,
    )  # fmt: skip


def _unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255.0, color[1] / 255.0, color[2] / 255.0
