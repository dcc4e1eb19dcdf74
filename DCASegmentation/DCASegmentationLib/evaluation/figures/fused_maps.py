"""What the aggregation decoder sees at DeB-9 after average, concatenation or DFAM (Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ...method.log_gap import GROUPS
from .group_style import write_headline
from .slice_views import AIR_HU, Slice, gray

# Above this percentile of the body the map is saturated, so that one bright voxel does not darken it.
_PERCENTILE = 99.5


def strength(features: np.ndarray) -> np.ndarray:
    """Length of the feature vector in each voxel (z, y, x) of ``features`` (channel, z, y, x)."""
    return np.asarray(np.sqrt((features**2).sum(axis=0)))


def contrast(
    strengths: np.ndarray, hu: np.ndarray, labels: np.ndarray, groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Mean strength within each group's organs over that of the body outside of all organs."""
    body = (hu > AIR_HU) & (labels == 0)
    outside = float(strengths[body].mean())
    inside = {group: np.isin(labels, list(owned)) for group, owned in groups.items()}
    return {group: float(strengths[mask].mean()) / outside for group, mask in inside.items() if mask.any()}


def fused_map_figure(
    hu: np.ndarray,
    strengths: Mapping[str, np.ndarray],
    contrasts: Mapping[str, Mapping[str, float]],
    labels: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    planes: Sequence[tuple[str, Slice]],
    title: str,
) -> Figure:
    """A row for each of ``planes``, a group's name and a slice through its organs: CT with the group's outline, then
    the strength of the fused features of each fusion, with the same outline, on a scale of its own from 0."""
    wide = 2.6
    heights = [plane.of(hu).shape[0] * plane.aspect / plane.of(hu).shape[1] for _, plane in planes]
    columns = len(strengths) + 1
    figure = Figure(figsize=(wide * columns + 0.8, wide * sum(heights) + 1.3), layout="constrained")
    write_headline(figure, title)
    grid = figure.subplots(len(planes), columns, squeeze=False, height_ratios=heights)
    for row, (group, plane) in zip(grid, planes, strict=True):
        outline = np.isin(plane.of(labels), list(groups[group]))
        row[0].imshow(gray(plane.of(hu)), aspect=plane.aspect)
        row[0].set_ylabel(f"{group.capitalize()} organs")
        for axes, values in zip(row[1:], strengths.values(), strict=True):
            top = np.percentile(values[hu > AIR_HU], _PERCENTILE)
            shown = axes.imshow(
                plane.of(values) / top, aspect=plane.aspect, cmap="inferno", vmin=0, vmax=1, interpolation="nearest"
            )
        for axes in row:
            axes.contour(outline, levels=[0.5], colors="cyan", linewidths=0.9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    grid[0, 0].set_title("CT", fontsize=10)
    for axes, name in zip(grid[0, 1:], strengths, strict=True):
        told = ", ".join(f"{group} {contrasts[name][group]:.2f}" for group in GROUPS if group in contrasts[name])
        axes.set_title(f"{name}\n{told}", fontsize=10)
    figure.colorbar(shown, ax=grid[:, -1].tolist(), label="strength of the fused features", shrink=0.7)
    return figure
