"""Layout of panels in one picture, with titles, side letters, scales and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import SimpleITK as sitk

from ..imaging.label_comparison import count_labels
from ..imaging.writers import write_file
from ..organs import Organ, Vocabulary

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Support points of matplotlib's perceptual color maps (CC0). They are copied here because Slicer has no matplotlib, and
# Slicer's own color files are not available outside of it.
VIRIDIS = (
    (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
    (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75),
    (173, 220, 48), (216, 226, 25), (253, 231, 37),
)  # fmt: skip
INFERNO = (
    (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106), (163, 44, 97),
    (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29), (249, 142, 9), (252, 172, 17), (249, 203, 53),
    (242, 234, 105), (252, 255, 164),
)  # fmt: skip
CIVIDIS = (
    (0, 34, 78), (0, 46, 106), (26, 56, 111), (50, 67, 109), (67, 78, 108), (83, 90, 109), (97, 101, 111),
    (111, 112, 115), (125, 124, 120), (140, 136, 120), (155, 148, 118), (171, 160, 114), (188, 174, 108),
    (205, 187, 99), (222, 201, 88), (240, 216, 70), (254, 232, 56),
)  # fmt: skip
COLOR_MAPS = {"Viridis": VIRIDIS, "Cividis": CIVIDIS, "Inferno": INFERNO}
"""The color maps by name, as support points (RGB, 0 to 255)."""

# Value in label maps of the dominant expert, name, color: blue, yellow and vermillion of Okabe and Ito, which also
# differ in brightness and remain distinguishable in all kinds of color blindness.
EXPERTS = (
    (1, "head", (0, 114, 178)),
    (2, "medium", (240, 228, 66)),
    (3, "tail", (213, 94, 0)),
)

# What the experts are called where radiologists see them: next to an organ, the method's own names (head, medium, and
# tail) read as anatomy. Files, saved scenes, and the library keep the method's names.
EXPERT_TITLES = {"head": "Large organs (head)", "medium": "Medium organs", "tail": "Small organs (tail)"}
SHORT_EXPERT_TITLES = {"head": "Large", "medium": "Medium", "tail": "Small"}


def color_table(name: str, size: int = 256) -> np.ndarray:
    """The color map ``name`` (a key of ``COLOR_MAPS``) as (size, 3) float values, 0 to 255."""
    support = np.array(COLOR_MAPS[name], dtype=float)
    positions = np.linspace(0.0, len(support) - 1.0, size)
    channels = [np.interp(positions, np.arange(len(support)), support[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1)


class CaseResult(Protocol):
    """The part of a segmentation result that scenes and pictures use.

    ``labels`` and ``dominant_expert`` (0 background, 1 head, 2 medium, 3 tail) lie exactly on the grid of the CT.
    ``attention`` maps a level (1 to 4) to the maps of the experts "head", "medium" and "tail"; these, ``entropy`` and
    ``disagreement`` (all 0 to 1) lie on the coarser grid of the model. Maps that were not requested are None or empty.
    ``organs`` are the requested organs, None for the whole vocabulary.
    """

    @property
    def organs(self) -> tuple[Organ, ...] | None:
        """The requested organs; None for all."""

    @property
    def labels(self) -> sitk.Image:
        """The label map."""

    @property
    def attention(self) -> Mapping[int, Mapping[str, sitk.Image]]:
        """The attention maps by level and expert."""

    @property
    def dominant_expert(self) -> sitk.Image | None:
        """The label map of dominant experts."""

    @property
    def entropy(self) -> sitk.Image | None:
        """The map of uncertainty."""

    @property
    def disagreement(self) -> sitk.Image | None:
        """The map of disagreement between the experts and the aggregation decoder."""


@dataclass(frozen=True)
class Panel:
    """One view: RGB pixels (rows, columns, 3) uint8, a title, the letters at its left and right edge, and a scale.

    ``mm_per_pixel`` is 0 if no scale applies (the 3D view).
    """

    pixels: np.ndarray
    title: str
    left: str = ""
    right: str = ""
    mm_per_pixel: float = 0.0

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.pixels.shape[1] / self.pixels.shape[0]


def find_organs(labels: sitk.Image, vocabulary: Vocabulary) -> tuple[Organ, ...]:
    """The organs with more than a few stray voxels in a label map, in the order of the vocabulary."""
    counts = count_labels(sitk.GetArrayViewFromImage(labels), len(vocabulary) + 1)
    ml = float(np.prod(labels.GetSpacing())) / 1000
    return tuple(organ for organ in vocabulary if counts[organ.label] and not organ.is_stray(counts[organ.label] * ml))


def find_missing_organs(result: CaseResult, vocabulary: Vocabulary) -> list[Organ]:
    """The requested organs that were not found."""
    found = find_organs(result.labels, vocabulary)
    return [organ for organ in (vocabulary if result.organs is None else result.organs) if organ not in found]


def get_finest_level(attention: Mapping[int, Mapping[str, sitk.Image]]) -> int | None:
    """The level with the most detailed maps (4 is full resolution), or None if there are no maps."""
    return max(attention, default=None)


_DPI_JOINED = 100
_TITLE, _MARGIN = 60, 12  # pixels


def compute_left_height(picture: Path) -> int:
    """The height in pixels of a picture that ``concat_images`` will place to the left of ``picture`` (PNG)."""
    from matplotlib.image import imread

    return int(imread(picture).shape[0]) - _TITLE - _MARGIN


def concat_images(left: Path, title: str, picture: Path) -> None:
    """Put ``left`` (PNG), under ``title``, to the left of ``picture`` (PNG), which is replaced. Raises OutputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    small, large = imread(left), imread(picture)
    rows, columns = large.shape[:2]
    width = columns + small.shape[1] + 2 * _MARGIN
    figure = Figure(figsize=(width / _DPI_JOINED, rows / _DPI_JOINED), dpi=_DPI_JOINED, facecolor="white")
    FigureCanvasAgg(figure)
    # Positions are in pixels from the lower left corner.
    figure.figimage(small, _MARGIN, rows - _TITLE - small.shape[0], origin="upper")
    figure.figimage(large, width - columns, 0, origin="upper")
    figure.text(_MARGIN / width, 1 - 18 / rows, title, fontsize=13, weight="bold", va="top")
    write_file(picture, lambda temporary: figure.savefig(temporary, format="png", dpi=_DPI_JOINED))


_WIDTH_INCHES = 16.0
_DPI = 150
# Pillow's default, 6, takes more than twice as long for a file that is a tenth smaller.
_COMPRESSION = 3
_GAP = 0.06  # inches between panels
_TITLE_HEIGHT, _PANEL_TITLE_HEIGHT, _ORGANS_HEIGHT, _SCALES_HEIGHT = 0.72, 0.3, 0.82, 0.55
_LEGEND_COLUMNS = 8
# Chinese, Japanese and Korean, and others, on Linux, Windows and macOS.
_FONTS_OF_OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
    *("PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Heiti SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew", "Segoe UI"),
)


@dataclass(frozen=True)
class Picture:
    """Two rows of panels with their legends. ``organs`` are the organs shown, ``missing`` those not found."""

    title: str
    subtitle: str
    views: Sequence[Panel]
    maps: Sequence[Panel]
    organs: Sequence[Organ]
    missing: Sequence[Organ]


def compute_panel_sizes(aspects: Sequence[float]) -> list[tuple[int, int]]:
    """The size (columns, rows) of each panel in a row as wide as the picture; ``aspects`` are widths over heights."""
    height = (_WIDTH_INCHES - _GAP * (len(aspects) + 1)) / sum(aspects)
    return [(round(height * aspect * _DPI), round(height * _DPI)) for aspect in aspects]


def write_picture(picture: Picture, path: Path) -> None:
    """Compose the picture and write it as PNG, completely or not at all. Raises OutputError."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({"font.size": 11, "font.family": _list_fonts(), "text.parse_math": False}):
        figure = compose(picture)
        FigureCanvasAgg(figure)
        settings = {"compress_level": _COMPRESSION}
        write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=_DPI, pil_kwargs=settings))


def _list_fonts() -> list[str]:
    """The default font, then fonts of this computer with letters that it lacks, for names in other scripts."""
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ["sans-serif", *(name for name in _FONTS_OF_OTHER_SCRIPTS if name in installed)]


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
    """Add a row below ``top`` (inches from the bottom), and return its lower edge."""
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
            _outline_in_black(text)
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
    _outline_in_black(bar, 4.0)
    _outline_in_black(text)


def _outline_in_black(artist: Artist, width: float = 2.5) -> None:
    """Outline white text or lines in black, so that they are visible on bone."""
    from matplotlib.patheffects import withStroke

    artist.set_path_effects([withStroke(linewidth=width, foreground="black")])


def _add_organ_legend(figure: Figure, picture: Picture, top: float, total: float) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_normalize_color(organ.color), label=organ.name) for organ in picture.organs]
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
    # Keeps the outer labels within the width of the bar.
    bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
    bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    figure.text(left + width + 0.008, (top - 0.175) / total, "attention to an expert (the three sum to 1)",
                fontsize=11, va="center")  # fmt: skip
    experts = [Patch(color=_normalize_color(color), label=EXPERT_TITLES[name]) for _, name, color in EXPERTS]
    figure.legend(
        handles=experts, loc="upper right", bbox_to_anchor=(1.0, (top - 0.04) / total), ncols=3, frameon=False,
        fontsize=11, handlelength=1.1, handleheight=1.0, columnspacing=1.4, borderaxespad=0.25,
    )  # fmt: skip


def _normalize_color(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255.0, color[1] / 255.0, color[2] / 255.0
