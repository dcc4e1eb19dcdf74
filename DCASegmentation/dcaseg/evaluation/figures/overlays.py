"""What several methods find in a case, next to the ground truth (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...organs import Vocabulary
from .style import columns_of_legend, rgb, write_headline

# Displayed from black to white.
_SHOWN_HU = (-160.0, 240.0)
_OPACITY = 0.55
# Below is air, or lung.
AIR_HU = -300
_MARGIN = 2


@dataclass(frozen=True)
class Slice:
    """A plane through arrays (z, y, x) of a RAS grid: an axial or coronal one at ``index``; ``aspect`` is the height of
    a voxel over its width on the screen, ``box`` the rows and columns of the screen that are shown."""

    name: str
    axis: int
    index: int
    aspect: float
    box: tuple[slice, slice] = (slice(None), slice(None))

    def of(self, array: np.ndarray) -> np.ndarray:
        """The plane of ``array`` (..., z, y, x), anterior or superior on top, the patient's right on the left."""
        taken = np.take(array, self.index, axis=array.ndim - 3 + self.axis)
        return taken[..., ::-1, ::-1][(..., *self.box)]

    def around_body(self, hu: np.ndarray) -> Slice:
        """The same slice without the air around the body; ``hu`` is (z, y, x)."""
        body = np.asarray(replace(self, box=(slice(None), slice(None))).of(hu) > AIR_HU)
        return replace(self, box=(_extent(np.any(body, axis=1)), _extent(np.any(body, axis=0)))) if body.any() else self


def fullest_slices(labels: np.ndarray, spacing: tuple[float, float, float]) -> list[Slice]:
    """The axial and the coronal slice with the most organs, of those the one with most of each organ's voxels.

    ``labels`` are (z, y, x) of a RAS grid, ``spacing`` (z, y, x) in mm.
    """
    z, y, x = spacing
    return [
        Slice("Axial", 0, _fullest(labels, 0), y / x),
        Slice("Coronal", 1, _fullest(labels, 1), z / x),
    ]


def gray(hu: np.ndarray) -> np.ndarray:
    """HU (rows, columns) as RGB 0..1 (rows, columns, 3)."""
    low, high = _SHOWN_HU
    shade = np.clip((hu.astype(float) - low) / (high - low), 0, 1)
    return np.repeat(shade[..., None], 3, axis=-1)


def with_organs(picture: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """RGB 0..1 with the organs of ``labels`` (rows, columns) laid over it."""
    colors = np.array([(0, 0, 0), *(organ.color for organ in vocabulary)], float) / 255
    inside = (labels > 0)[..., None]
    return np.where(inside, (1 - _OPACITY) * picture + _OPACITY * colors[labels], picture)


def _extent(inside: np.ndarray) -> slice:
    """From the first to the last true value, with a margin."""
    places = np.flatnonzero(inside)
    return slice(max(int(places[0]) - _MARGIN, 0), int(places[-1]) + 1 + _MARGIN)


def _fullest(labels: np.ndarray, axis: int) -> int:
    votes = np.zeros(labels.shape[axis])
    others = tuple(one for one in range(3) if one != axis)
    for label in np.unique(labels[labels > 0]):
        counts = (labels == label).sum(axis=others)
        votes += (counts > 0) + counts / counts.max() / 100
    return int(np.argmax(votes))


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
