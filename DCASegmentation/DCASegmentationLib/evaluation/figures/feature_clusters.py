"""Features of the last decoder block in two dimensions by t-SNE, a panel for each method (Fig. 6)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...errors import UserError
from ...organs import Vocabulary
from .group_style import INK, columns_of_legend, rgb, write_headline

_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Clusters:
    """Points (n, 2) of t-SNE, and the silhouette coefficient (-1 to 1) of the organs in the features themselves: how
    much nearer a voxel is to those of its own organ than to those of the nearest other."""

    points: np.ndarray
    silhouette: float


def require_scikit_learn() -> None:
    """Raises UserError where it is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "scikit-learn is not installed.", 'Install it: pip install scikit-learn, or pip install -e ".[figures]".'
        )


def embed(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> Clusters:
    """t-SNE of ``features`` (n, channel), each channel brought to mean 0 and deviation 1, and their silhouette.

    Raises UserError where scikit-learn is not installed.
    """
    require_scikit_learn()
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    deviation = features.std(axis=0)
    alike = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(alike)
    return Clusters(points, float(silhouette_score(alike, labels)))


def cluster_figure(clusters: Mapping[str, Clusters], labels: np.ndarray, vocabulary: Vocabulary, title: str) -> Figure:
    """A panel for each method; the same voxels in all, in the colors of their organs, whose names stand where their
    median lies."""
    columns = min(len(clusters), 4)
    rows = -(-len(clusters) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows + 1.3), layout="constrained")
    write_headline(figure, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    present = [organ for organ in vocabulary if (labels == organ.label).any()]
    for axes, (method, found) in zip(panels, clusters.items(), strict=False):
        for organ in present:
            points = found.points[labels == organ.label]
            axes.scatter(*points.T, s=5, color=rgb(organ.color), linewidth=0)
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
        Line2D([], [], linestyle="none", marker="o", color=rgb(organ.color), label=f"{organ.abbreviation} {organ.name}")
        for organ in present
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns_of_legend(figure, len(handles)), frameon=False,
        fontsize=8, handletextpad=0.1,
    )  # fmt: skip
    return figure
