"""Draws the label maps of several methods over slices of a CT, next to the ground truth (Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...organs import Vocabulary
from .style import count_legend_columns, normalize_rgb, write_headline

# HU range displayed from black to white.
_SHOWN_HU = (-160.0, 240.0)
_OPACITY = 0.55
# HU below this are air or lung.
AIR_HU = -300
_MARGIN = 2
_MAX_COLUMNS = 12


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

    def extract(self, array: np.ndarray) -> np.ndarray:
        """The plane of ``array`` (..., z, y, x), with anterior or superior on top and the patient's right on the
        left."""
        plane = np.take(array, self.index, axis=array.ndim - 3 + self.axis)
        return plane[..., ::-1, ::-1][(..., *self.box)]

    def crop_to_body(self, hu: np.ndarray) -> Slice:
        """The same slice, cropped to the body; ``hu`` is (z, y, x)."""
        body = np.asarray(replace(self, box=(slice(None), slice(None))).extract(hu) > AIR_HU)
        return (
            replace(self, box=(_compute_extent(np.any(body, axis=1)), _compute_extent(np.any(body, axis=0))))
            if body.any()
            else self
        )


def find_fullest_slices(labels: np.ndarray, spacing: tuple[float, float, float]) -> list[Slice]:
    """The axial and the coronal slice with the most organs. Ties go to the slice with more voxels of each organ.

    ``labels`` is (z, y, x) on a RAS grid, ``spacing`` is (z, y, x) in mm.
    """
    z, y, x = spacing
    return [
        Slice("Axial", 0, _find_fullest_slice(labels, 0), y / x),
        Slice("Coronal", 1, _find_fullest_slice(labels, 1), z / x),
    ]


def convert_hu_to_rgb(hu: np.ndarray) -> np.ndarray:
    """Convert HU (rows, columns) to RGB (rows, columns, 3) from 0 to 1."""
    low, high = _SHOWN_HU
    shade = np.clip((hu.astype(float) - low) / (high - low), 0, 1)
    return np.repeat(shade[..., None], 3, axis=-1)


def overlay_organs(picture: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """``picture``, RGB (rows, columns, 3) from 0 to 1, with the organs of ``labels`` (rows, columns) drawn over it."""
    colors = np.array([(0, 0, 0), *(organ.color for organ in vocabulary)], float) / 255
    inside = (labels > 0)[..., None]
    return np.where(inside, (1 - _OPACITY) * picture + _OPACITY * colors[labels], picture)


def _compute_extent(inside: np.ndarray) -> slice:
    """The range from the first to the last true value, with a margin."""
    indices = np.flatnonzero(inside)
    return slice(max(int(indices[0]) - _MARGIN, 0), int(indices[-1]) + 1 + _MARGIN)


def _find_fullest_slice(labels: np.ndarray, axis: int) -> int:
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


def plot_overlays(cases: Sequence[CaseResults], vocabulary: Vocabulary, title: str, labels: str = "Truth") -> Figure:
    """Draw an axial and a coronal row for each case: CT, truth, and each method with the truth's outline in white.

    With many methods, a case has several such pairs of rows. ``labels`` is the column title of the truth.
    """
    methods = list(cases[0].found)
    # Enough columns for a page; further methods follow in more rows of the same case.
    n_bands = math.ceil((2 + len(methods)) / _MAX_COLUMNS)
    columns = math.ceil((2 + len(methods)) / n_bands)
    rows = [
        (case, plane.crop_to_body(case.hu), slice(band * columns, (band + 1) * columns))
        for case in cases
        for band in range(n_bands)
        for plane in find_fullest_slices(case.truth, case.spacing)
    ]
    heights = [_compute_height(plane.extract(case.hu), plane) for case, plane, _ in rows]
    width = 1.9
    figure = Figure(figsize=(width * columns, width * sum(heights) + 1.4), layout="constrained")
    write_headline(figure, title)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, (case, plane, band) in zip(grid, rows, strict=True):
        picture, truth = convert_hu_to_rgb(plane.extract(case.hu)), plane.extract(case.truth)
        panels = [picture, overlay_organs(picture, truth, vocabulary)]
        panels += [overlay_organs(picture, plane.extract(case.found[method]), vocabulary) for method in methods]
        titles = ["CT", labels, *(f"{method}\nDice {case.dice[method]:.3f}" for method in methods)]
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, pixels, panel_title in zip(row, panels[band], titles[band], strict=False):
            axes.imshow(pixels, aspect=plane.aspect, interpolation="nearest")
            if plane.name == "Axial":
                axes.set_title(panel_title, fontsize=10)
            if panel_title not in ("CT", labels):
                _draw_outlines(axes, truth)
        row[0].set_ylabel(f"{case.name}\n{plane.name}".strip() if plane.name == "Axial" else plane.name)
    handles = [Patch(facecolor=normalize_rgb(organ.color), label=organ.name) for organ in vocabulary]
    legend_columns = count_legend_columns(figure, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9)
    return figure


def _draw_outlines(axes: Axes, labels: np.ndarray) -> None:
    """Draw white lines around each organ, along voxel edges."""
    down = labels[1:] != labels[:-1]
    across = labels[:, 1:] != labels[:, :-1]
    lines = [[(x - 0.5, y + 0.5), (x + 0.5, y + 0.5)] for y, x in zip(*np.nonzero(down), strict=True)]
    lines += [[(x + 0.5, y - 0.5), (x + 0.5, y + 0.5)] for y, x in zip(*np.nonzero(across), strict=True)]
    axes.add_collection(LineCollection(lines, colors="white", linewidths=0.6), autolim=False)


def _compute_height(pixels: np.ndarray, plane: Slice) -> float:
    return pixels.shape[0] * plane.aspect / pixels.shape[1]
