"""Draws the label maps of several methods over slices of a CT, next to the ground truth (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...organs import Vocabulary
from .style import columns_of_legend, rgb, write_headline

# HU range displayed from black to white.
_SHOWN_HU = (-160.0, 240.0)
_OPACITY = 0.55
# HU below this are air or lung.
AIR_HU = -300
_MARGIN = 2


@dataclass(frozen=True)
class Slice:
    """An axial or coronal plane at ``index`` through arrays (z, y, x) on a RAS grid.

    ``axis`` is the array axis that the plane cuts, ``aspect`` the height of a voxel divided by its width on the screen,
    ``box`` the visible rows and columns of the screen.
    """

    name: str
    axis: int
    index: int
    aspect: float
    box: tuple[slice, slice] = (slice(None), slice(None))

    def of(self, array: np.ndarray) -> np.ndarray:
        """The plane of ``array`` (..., z, y, x), with anterior or superior on top and the patient's right on the
        left."""
        plane = np.take(array, self.index, axis=array.ndim - 3 + self.axis)
        return plane[..., ::-1, ::-1][(..., *self.box)]

    def around_body(self, hu: np.ndarray) -> Slice:
        """The same slice, cropped to the body; ``hu`` is (z, y, x)."""
        body = np.asarray(replace(self, box=(slice(None), slice(None))).of(hu) > AIR_HU)
        return replace(self, box=(_extent(np.any(body, axis=1)), _extent(np.any(body, axis=0)))) if body.any() else self


def fullest_slices(labels: np.ndarray, spacing: tuple[float, float, float]) -> list[Slice]:
    """The axial and the coronal slice with the most organs. Ties go to the slice with more voxels of each organ.

    ``labels`` is (z, y, x) on a RAS grid, ``spacing`` is (z, y, x) in mm.
    """
    z, y, x = spacing
    return [
        Slice("Axial", 0, _fullest(labels, 0), y / x),
        Slice("Coronal", 1, _fullest(labels, 1), z / x),
    ]


def gray(hu: np.ndarray) -> np.ndarray:
    """Convert HU (rows, columns) to RGB (rows, columns, 3) from 0 to 1."""
    low, high = _SHOWN_HU
    shade = np.clip((hu.astype(float) - low) / (high - low), 0, 1)
    return np.repeat(shade[..., None], 3, axis=-1)


def with_organs(picture: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """``picture``, RGB (rows, columns, 3) from 0 to 1, with the organs of ``labels`` (rows, columns) drawn over it."""
    colors = np.array([(0, 0, 0), *(organ.color for organ in vocabulary)], float) / 255
    inside = (labels > 0)[..., None]
    return np.where(inside, (1 - _OPACITY) * picture + _OPACITY * colors[labels], picture)


def _extent(inside: np.ndarray) -> slice:
    """The range from the first to the last true value, with a margin."""
    indices = np.flatnonzero(inside)
    return slice(max(int(indices[0]) - _MARGIN, 0), int(indices[-1]) + 1 + _MARGIN)


def _fullest(labels: np.ndarray, axis: int) -> int:
    scores = np.zeros(labels.shape[axis])
    other_axes = tuple(other for other in range(3) if other != axis)
    for label in np.unique(labels[labels > 0]):
        counts = (labels == label).sum(axis=other_axes)
        scores += (counts > 0) + counts / counts.max() / 100
    return int(np.argmax(scores))


@dataclass(frozen=True)
class CaseResults:
    """A case on a RAS grid of ``spacing`` (z, y, x) in mm: HU, true labels, and the results of each method.

    ``hu`` and ``truth`` are (z, y, x); ``found`` maps method titles to label maps (z, y, x), ``dice`` to mean Dice over
    organs.
    """

    name: str
    hu: np.ndarray
    truth: np.ndarray
    found: Mapping[str, np.ndarray]
    dice: Mapping[str, float]
    spacing: tuple[float, float, float]


def overlay_figure(cases: Sequence[CaseResults], vocabulary: Vocabulary, title: str, labels: str = "Truth") -> Figure:
    """Draw an axial and a coronal row for each case: CT, truth, and each method with the truth's outline in white.

    ``labels`` is the column title of the truth.
    """
    planes = [
        (case, plane.around_body(case.hu)) for case in cases for plane in fullest_slices(case.truth, case.spacing)
    ]
    methods = list(cases[0].found)
    heights = [_height(plane.of(case.hu), plane) for case, plane in planes]
    width = 1.9
    columns = len(methods) + 2
    figure = Figure(figsize=(width * columns, width * sum(heights) + 1.4), layout="constrained")
    write_headline(figure, title)
    grid = figure.subplots(len(planes), columns, squeeze=False, height_ratios=heights)
    for row, (case, plane) in zip(grid, planes, strict=True):
        picture, truth = gray(plane.of(case.hu)), plane.of(case.truth)
        panels = [picture, with_organs(picture, truth, vocabulary)]
        panels += [with_organs(picture, plane.of(case.found[method]), vocabulary) for method in methods]
        for axes, pixels in zip(row, panels, strict=True):
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
    legend_columns = columns_of_legend(figure, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9)
    return figure


def _outline(axes: Axes, labels: np.ndarray) -> None:
    """Draw white lines around each organ, along voxel edges."""
    down = labels[1:] != labels[:-1]
    across = labels[:, 1:] != labels[:, :-1]
    for row, column in zip(*np.nonzero(down), strict=True):
        axes.plot([column - 0.5, column + 0.5], [row + 0.5] * 2, color="white", linewidth=0.6)
    for row, column in zip(*np.nonzero(across), strict=True):
        axes.plot([column + 0.5] * 2, [row - 0.5, row + 0.5], color="white", linewidth=0.6)


def _height(pixels: np.ndarray, plane: Slice) -> float:
    return pixels.shape[0] * plane.aspect / pixels.shape[1]
