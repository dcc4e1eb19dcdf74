"""What several methods find in a case, beside the truth (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...organs import Vocabulary
from .group_style import columns_of_legend, rgb, write_headline
from .slice_views import Slice, fullest_slices, gray, with_organs


@dataclass(frozen=True)
class CaseResults:
    """HU and true labels (z, y, x) of a case on a RAS grid of ``spacing`` (z, y, x) in mm, the label map of each method
    by its title, and its Dice (mean over organs)."""

    name: str
    hu: np.ndarray
    truth: np.ndarray
    found: Mapping[str, np.ndarray]
    dice: Mapping[str, float]
    spacing: tuple[float, float, float]


def overlay_figure(cases: Sequence[CaseResults], vocabulary: Vocabulary, title: str, labels: str = "Truth") -> Figure:
    """For each case two rows, axial and coronal: CT, truth, and each method with the truth's outline in white.

    ``labels`` stands over the truth, to say whose it is.
    """
    planes = [
        (case, plane.around_body(case.hu)) for case in cases for plane in fullest_slices(case.truth, case.spacing)
    ]
    methods = list(cases[0].found)
    heights = [_height(plane.of(case.hu), plane) for case, plane in planes]
    wide = 1.9
    columns = len(methods) + 2
    figure = Figure(figsize=(wide * columns, wide * sum(heights) + 1.4), layout="constrained")
    write_headline(figure, title)
    grid = figure.subplots(len(planes), columns, squeeze=False, height_ratios=heights)
    for row, (case, plane) in zip(grid, planes, strict=True):
        picture, truth = gray(plane.of(case.hu)), plane.of(case.truth)
        shown = [picture, with_organs(picture, truth, vocabulary)]
        shown += [with_organs(picture, plane.of(case.found[method]), vocabulary) for method in methods]
        for axes, pixels in zip(row, shown, strict=True):
            axes.imshow(pixels, aspect=plane.aspect, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes in row[2:]:
            _outline(axes, truth)
        row[0].set_ylabel(f"{case.name}\n{plane.name}".strip() if plane.name == "Axial" else plane.name)
        if plane.name == "Axial":
            for axes, method in zip(row[2:], methods, strict=True):
                axes.set_title(f"{method}\nDice {case.dice[method]:.3f}", fontsize=10)
            row[0].set_title("CT", fontsize=10)
            row[1].set_title(labels, fontsize=10)
    handles = [Patch(facecolor=rgb(organ.color), label=organ.name) for organ in vocabulary]
    side_by_side = columns_of_legend(figure, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=side_by_side, frameon=False, fontsize=9)
    return figure


def _outline(axes: Axes, labels: np.ndarray) -> None:
    """White lines around each organ, along the voxels' edges."""
    down = labels[1:] != labels[:-1]
    across = labels[:, 1:] != labels[:, :-1]
    for row, column in zip(*np.nonzero(down), strict=True):
        axes.plot([column - 0.5, column + 0.5], [row + 0.5] * 2, color="white", linewidth=0.6)
    for row, column in zip(*np.nonzero(across), strict=True):
        axes.plot([column + 0.5] * 2, [row - 0.5, row + 0.5], color="white", linewidth=0.6)


def _height(pixels: np.ndarray, plane: Slice) -> float:
    return pixels.shape[0] * plane.aspect / pixels.shape[1]
