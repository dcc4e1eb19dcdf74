"""Plots features of the last decoder block by t-SNE (Fig. 6) and fused feature maps before DeB-9 (Fig. 8)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...errors import UserError, format_install_command
from ...method.log_gap import GROUPS
from ...organs import Vocabulary
from .overlays import AIR_HU, Slice, convert_hu_to_rgb
from .style import INK, count_legend_columns, normalize_rgb, write_headline

_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Clusters:
    """Points (n, 2) of t-SNE, and the silhouette coefficient (-1 to 1) of the organs in the original features.

    The coefficient measures how much closer a voxel is to voxels of its own organ than to those of the nearest other.
    """

    points: np.ndarray
    silhouette: float


def require_scikit_learn() -> None:
    """Raise UserError if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("scikit-learn is not installed.", f"Install it: {format_install_command('scikit-learn')}")


def embed(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> Clusters:
    """t-SNE and silhouette of ``features`` (n, channel), each channel scaled to mean 0 and standard deviation 1.

    Raises UserError if scikit-learn is not installed.
    """
    require_scikit_learn()
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)
    return Clusters(points, float(silhouette_score(scaled, labels)))


def plot_clusters(clusters: Mapping[str, Clusters], labels: np.ndarray, vocabulary: Vocabulary, title: str) -> Figure:
    """Plot the same voxels for each method, in the colors of their organs.

    ``labels`` (n,) are the labels of the voxels. The abbreviation of each organ is at the median of its points.
    """
    columns = min(len(clusters), 4)
    rows = -(-len(clusters) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows + 1.3), layout="constrained")
    write_headline(figure, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    present = [organ for organ in vocabulary if (labels == organ.label).any()]
    for axes, (method, found) in zip(panels, clusters.items(), strict=False):
        for organ in present:
            points = found.points[labels == organ.label]
            axes.scatter(*points.T, s=5, color=normalize_rgb(organ.color), linewidth=0)
        for organ in present:
            middle = np.median(found.points[labels == organ.label], axis=0)
            axes.text(
                *middle, organ.abbreviation, fontsize=8, ha="center", va="center", color=INK,
                bbox={"facecolor": "white", "alpha": 0.65, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
        axes.set_title(f"{method}\nsilhouette {found.silhouette:.3f}", fontsize=10)
        axes.set(xticks=[], yticks=[])
    for axes in panels[len(clusters) :]:
        axes.set_visible(False)
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            color=normalize_rgb(organ.color),
            label=f"{organ.abbreviation} {organ.name}",
        )
        for organ in present
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=count_legend_columns(figure, len(handles)), frameon=False,
        fontsize=8, handletextpad=0.1,
    )  # fmt: skip
    return figure


# The map saturates above this percentile inside the body, so that single bright voxels do not darken it.
_PERCENTILE = 99.5


def compute_feature_norm(features: np.ndarray) -> np.ndarray:
    """Norm of the feature vector of each voxel: (z, y, x) from ``features`` (channel, z, y, x)."""
    return np.asarray(np.sqrt((features**2).sum(axis=0)))


def compute_contrast(
    strengths: np.ndarray, hu: np.ndarray, labels: np.ndarray, groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Mean strength inside each group's organs divided by that in the body outside all organs. Arrays are (z, y, x)."""
    body = (hu > AIR_HU) & (labels == 0)
    outside = float(strengths[body].mean())
    inside = {group: np.isin(labels, list(owned)) for group, owned in groups.items()}
    return {group: float(strengths[mask].mean()) / outside for group, mask in inside.items() if mask.any()}


def plot_fused_maps(
    hu: np.ndarray,
    strengths: Mapping[str, np.ndarray],
    contrasts: Mapping[str, Mapping[str, float]],
    labels: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    planes: Sequence[tuple[str, Slice]],
    title: str,
) -> Figure:
    """Draw the strength of the fused features of each fusion next to the CT (Fig. 8).

    There is a row for each of ``planes``, pairs of a group's name and a slice through its organs. Each panel shows the
    outline of the group's organs. Each fusion has its own scale, starting at 0. Arrays are (z, y, x).
    """
    width = 2.6
    heights = [plane.extract(hu).shape[0] * plane.aspect / plane.extract(hu).shape[1] for _, plane in planes]
    columns = len(strengths) + 1
    figure = Figure(figsize=(width * columns + 0.8, width * sum(heights) + 1.3), layout="constrained")
    write_headline(figure, title)
    grid = figure.subplots(len(planes), columns, squeeze=False, height_ratios=heights)
    for row, (group, plane) in zip(grid, planes, strict=True):
        outline = np.isin(plane.extract(labels), list(groups[group]))
        row[0].imshow(convert_hu_to_rgb(plane.extract(hu)), aspect=plane.aspect)
        row[0].set_ylabel(f"{group.capitalize()} organs")
        for axes, values in zip(row[1:], strengths.values(), strict=True):
            top = np.percentile(values[hu > AIR_HU], _PERCENTILE)
            image = axes.imshow(
                plane.extract(values) / top,
                aspect=plane.aspect,
                cmap="inferno",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
        for axes in row:
            axes.contour(outline, levels=[0.5], colors="cyan", linewidths=0.9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    grid[0, 0].set_title("CT", fontsize=10)
    for axes, name in zip(grid[0, 1:], strengths, strict=True):
        ratios = ", ".join(f"{group} {contrasts[name][group]:.2f}" for group in GROUPS if group in contrasts[name])
        axes.set_title(f"{name}\n{ratios}", fontsize=10)
    figure.colorbar(image, ax=grid[:, -1].tolist(), label="strength of the fused features", shrink=0.7)
    return figure
