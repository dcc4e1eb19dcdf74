"""Draw the diagram of the method: encoder, three experts, stitching, fusion (DFAM) and the aggregation decoder.

    python Testing/draw_method_diagram.py [FILE.png]

The file is Resources/Screenshots/method.png unless another is named. The numbers of convolutions and the dilations are
read from the network's code, the sizes of organs from a synthetic person.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import SimpleITK as sitk
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from dcaseg.method.log_gap import partition
from dcaseg.method.variants import PAPER_DILATIONS, PAPER_N_STAGES, VNET_N_STAGES
from dcaseg.method.vnet import Encoder
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.case import generate

PICTURE = Path(__file__).parents[1] / "Resources/Screenshots/method.png"

# The experts' colors are those of the maps in Slicer and in the pictures of results.
_INK, _GRAY, _PURPLE = "#1f2933", "#6b7785", "#5b3a8c"
_EXPERTS = ("#0072b2", "#d4b106", "#d55e00")
_DARK = {_EXPERTS[1]: "#8f7700"}  # yellow letters are hard to read
_NAMES = ("Head expert", "Medium expert", "Tail expert")
_ORGANS = ("large organs", "medium organs", "small organs")

_ROWS, _AGGREGATION_ROW = (6.15, 4.85, 3.55), 1.55
_COLUMNS = (5.6, 7.6, 9.6, 11.6)  # the experts' blocks of levels 1 to 4
_HEIGHTS = (0.4, 0.55, 0.72, 0.9)  # of blocks, by level
_SLICE = 0.13  # width of one convolution
_DFAM_SHIFT, _BLOCK_SHIFT = 0.85, 1.75  # from an expert's block to the fusion and the aggregation decoder's block
_STITCH_X, _OUT_X = 14.35, 16.2


def draw(file: Path) -> None:
    """Write the diagram to ``file``."""
    figure = plt.figure(figsize=(17.2, 7.5), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 17.2), ylim=(0, 7.5))
    axes.axis("off")
    _draw_divide(figure)
    _draw_encoder(axes)
    for row, color, name, organs, stages, dilation in zip(
        _ROWS, _EXPERTS, _NAMES, _ORGANS, PAPER_N_STAGES, PAPER_DILATIONS, strict=True
    ):
        spread = f",\ndilation {dilation[0]}" if dilation[0] > 1 else ""
        _draw_decoder(axes, row, _COLUMNS, stages, color)
        _text(axes, 3.88, row + 0.24, name, _DARK.get(color, color), size=12, weight="bold", ha="left")
        axes.text(3.88, row - 0.1, f"{organs}{spread}", color=_INK, fontsize=10, va="top", zorder=6)
        _arrow(axes, (_COLUMNS[-1], row), (_STITCH_X - 0.75, row), color, zorder=1)
        _text(axes, 13.05, row + 0.14, "logits", _DARK.get(color, color), size=10)
    _text(axes, 3.88, 7.05, "Conquer: a decoder for each group of organs", _INK, size=12, ha="left")
    _draw_aggregation(axes)
    _draw_stitching(axes)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_divide(figure: plt.Figure) -> None:
    """Organs of a synthetic person by size, in the groups that log-gap analysis finds."""
    values, counts = np.unique(sitk.GetArrayFromImage(generate(7, spacing=(4, 4, 4)).labels), return_counts=True)
    sizes = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}
    groups = partition(sizes, "top2")
    color = {label: _EXPERTS[place] for place, owned in enumerate(groups.owners) for label in owned}
    order = sorted(sizes, key=lambda label: -sizes[label])
    axes = figure.add_axes((0.022, 0.66, 0.185, 0.22))
    axes.bar(range(len(order)), [sizes[label] for label in order], color=[color[label] for label in order], width=0.8)
    axes.set(yscale="log", xticks=[], yticks=[])
    axes.minorticks_off()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(
        "Divide: organs by size (log scale),\nsplit at the two largest gaps", fontsize=12, color=_INK, loc="left"
    )
    names = {organ.label: organ.name for organ in AMOS}
    axes.set_xlabel(f"{names[order[0]].lower()} … {names[order[-1]].lower()}", fontsize=10, color=_INK)


def _draw_encoder(axes: Axes) -> None:
    y = 3.2
    heights = (1.9, 1.45, 1.05, 0.7, 0.45)
    x = 0.95
    _text(axes, 0.46, y, "CT\npatch", _INK, size=12)
    _arrow(axes, (0.72, y), (x - 0.04, y), _INK)
    for level, (stages, height) in enumerate(zip(Encoder.N_STAGES, heights, strict=True), start=1):
        width = _slices(axes, x, y, stages, height, _GRAY)
        _text(axes, x + width / 2, y - height / 2 - 0.17, f"x{level}", _INK, size=10)
        x += width + 0.16
    _text(axes, 0.42, 4.42, "Encoder (V-Net)", _INK, size=12, weight="bold", ha="left")
    _text(
        axes, 0.42, 1.62, "Decoders start from x5 and\nadd x4 to x1 at levels 1 to 4.", _INK, size=10, ha="left",
    )  # fmt: skip
    # One bus from x5 to every decoder.
    bus = 3.75
    axes.plot([x - 0.14, bus], [y, y], color=_GRAY, lw=1.6)
    axes.plot([bus, bus], [_AGGREGATION_ROW, _ROWS[0]], color=_GRAY, lw=1.6, solid_capstyle="round")
    for row in _ROWS:
        _arrow(axes, (bus, row), (_COLUMNS[0] - 0.32, row), _GRAY)
    _arrow(axes, (bus, _AGGREGATION_ROW), (_COLUMNS[0] + _DFAM_SHIFT - 0.5, _AGGREGATION_ROW), _GRAY)


def _draw_decoder(axes: Axes, row: float, columns: tuple[float, ...], stages: tuple[int, ...], color: str) -> None:
    axes.plot([columns[0], columns[-1]], [row, row], color=color, lw=1.6, zorder=1)
    for x, count, height in zip(columns, stages, _HEIGHTS, strict=True):
        _slices(axes, x - count * _SLICE / 2, row, count, height, color)


def _draw_aggregation(axes: Axes) -> None:
    row = _AGGREGATION_ROW
    blocks = tuple(x + _BLOCK_SHIFT for x in _COLUMNS)
    axes.plot([_COLUMNS[0] + _DFAM_SHIFT, blocks[-1]], [row, row], color=_PURPLE, lw=1.6, zorder=1)
    for x, count, height in zip(blocks, VNET_N_STAGES, _HEIGHTS, strict=True):
        _slices(axes, x - count * _SLICE / 2, row, count, height, _PURPLE)
    for level, column in enumerate(_COLUMNS, start=1):
        x = column + _DFAM_SHIFT
        for expert, (start, color) in enumerate(zip(_ROWS, _EXPERTS, strict=True)):
            at = x + 0.16 * (expert - 1)
            axes.plot([at], [start], "o", color=color, ms=6, zorder=4, mec="white", mew=0.8)
            _arrow(axes, (at, start), (at, row + 0.36), color, zorder=3)
        _box(axes, x, row, 0.86, 0.66, f"DFAM\nlevel {level}", _PURPLE)
    scales = ("1/8", "1/4", "1/2", "full")
    for scale, x in zip(scales, blocks, strict=True):
        _text(axes, x, row - 0.62, f"{scale} size", _INK, size=10)
    _text(axes, 3.88, row + 0.24, "Aggregation", _PURPLE, size=12, weight="bold", ha="left")
    axes.text(3.88, row - 0.1, "decoder", color=_PURPLE, fontsize=12, fontweight="bold", va="top", zorder=6)
    _text(
        axes, 3.88, 0.35,
        "Aggregate: in DFAM, at each voxel a softmax weighs the three experts' features "
        "(the weights are the attention maps); the weighted sum is added to the stream.",
        _INK, size=11, ha="left",
    )  # fmt: skip


def _draw_stitching(axes: Axes) -> None:
    top, bottom = _ROWS[0] + 0.35, _ROWS[2] - 0.35
    _box(axes, _STITCH_X, (top + bottom) / 2, 1.4, top - bottom, "Stitching:\neach organ\nfrom its\nown expert", _INK)
    row = _AGGREGATION_ROW
    plus = _STITCH_X
    axes.plot([_COLUMNS[-1] + _BLOCK_SHIFT, plus], [row, row], color=_PURPLE, lw=1.6, zorder=1)
    _arrow(axes, (plus, bottom), (plus, row + 0.22), _INK)
    _text(axes, plus + 0.14, 2.42, "the decoder corrects\nthe stitched logits", _INK, size=10, ha="left")
    axes.plot([plus], [row], "o", ms=21, color="white", mec=_INK, mew=1.6, zorder=4)
    _text(axes, plus, row - 0.015, "+", _INK, size=17)
    _arrow(axes, (plus + 0.2, row), (_OUT_X - 0.62, row), _INK)
    _text(axes, _OUT_X, row, "Labels", _INK, size=13, weight="bold")
    middle = (top + bottom) / 2
    _arrow(axes, (_STITCH_X + 0.72, middle), (_OUT_X - 0.68, middle), _INK, style="dashed")
    _text(axes, _OUT_X, middle, "Pseudo-labels\nof CTs\nwithout labels", _INK, size=11)
    _arrow(axes, (_OUT_X, middle - 0.5), (_OUT_X, row + 0.3), _INK, style="dashed")
    _text(axes, _OUT_X - 0.1, 3.35, "in training", _INK, size=10, ha="right")


def _slices(axes: Axes, x: float, y: float, count: int, height: float, color: str) -> float:
    """A block of ``count`` convolutions from ``x`` on; returns its width."""
    for number in range(count):
        axes.add_patch(
            Rectangle((x + number * _SLICE, y - height / 2), _SLICE, height, fc=color, ec="white", lw=1.2, zorder=2)
        )
    return count * _SLICE


def _box(axes: Axes, x: float, y: float, width: float, height: float, label: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2 + 0.06, y - height / 2 + 0.06), width - 0.12, height - 0.12,
            boxstyle="round,pad=0.06", fc="white", ec=color, lw=1.8, zorder=4,
        )
    )  # fmt: skip
    _text(axes, x, y, label, color, size=11, weight="bold")


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, style: str = "solid", zorder: int = 3
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color=color, lw=1.6, ls=style, shrinkA=0, shrinkB=0,
            zorder=zorder,
        )
    )  # fmt: skip


def _text(
    axes: Axes, x: float, y: float, label: str, color: str, size: float, weight: str = "normal", ha: str = "center"
) -> None:
    axes.text(x, y, label, color=color, fontsize=size, fontweight=weight, ha=ha, va="center", zorder=6)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
