"""Draws the paper's figures of results (1, 2 and 5 to 8) from the same runs as its tables.

Each figure is a picture and, under the same name, a JSON file with its numbers. Missing runs are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...errors import UserError
from ...imaging.writers import write_json
from ...training.cases import Case
from ...training.strategies.base import Strategy
from ...training.training_set import divide
from ...training.validation import predict
from ..features import extract_feature_volume, extract_features, get_last_block, get_last_fusion, sample_balanced_voxels
from ..figures.features import (
    compute_contrast,
    compute_feature_norm,
    embed,
    plot_clusters,
    plot_fused_maps,
    require_scikit_learn,
)
from ..figures.log_gap import plot_label_ratios
from ..figures.organ_dice import plot_expert_variants, plot_organ_dice
from ..figures.overlays import CaseResults, find_fullest_slices, plot_overlays
from ..figures.style import save_figure
from ..label_ratios import MODES, Subset, describe_subset, make_nested_subsets, measure_stability
from ..scores import Scores
from ..statistics import average_over_seeds
from .definitions import BASELINES, DEPTHS, DILATIONS, FUSIONS, STITCHED, Arm, make_expert_variant
from .runs import Runs, round_or_none

_RATIOS = (10.0, 20.0, 40.0, 100.0)
_DCA = BASELINES[-1]
# Figure 7: each of the paper's depths with each dilation.
_COMBINATIONS = [(depth, dilation) for depth in DEPTHS for dilation in DILATIONS]
# Number of voxels of each organ in figure 6.
_PER_ORGAN = 80


@dataclass(frozen=True)
class Also:
    """Further input of figures.

    ``subsets`` are sets of labeled cases for figure 2, such as those of published splits, ``ratios`` (percent) its
    label ratios. ``methods`` are the methods of figures 1, 5 and 6; the last one is DCA.
    """

    subsets: tuple[Subset, ...] = ()
    ratios: tuple[float, ...] = _RATIOS
    methods: tuple[Arm, ...] = BASELINES


def make_figure(name: str, runs: Runs, also: Also | None = None, extension: str = ".png") -> Path:
    """Draw figure ``name`` into the folder of ``runs`` as .png, .pdf or .svg, and return its path.

    Raises UserError for an unknown name, or if the data do not have what the figure shows.
    """
    if name not in FIGURES:
        raise UserError(f"Unknown figure: '{name}'.", f"Choose one of: {', '.join(FIGURES)}.")
    _require_ras(runs)
    figure, numbers = FIGURES[name].draw(runs, also or Also())
    write_json({"data": runs.data.description, **numbers}, runs.folder / f"{name}.json")
    path = runs.folder / f"{name}{extension}"
    save_figure(figure, path)
    return path


def _draw_organ_dice(runs: Runs, also: Also) -> tuple[Figure, dict[str, Any]]:
    """Figure 1."""
    arms = _select_methods(runs, also, with_all_labels=True)
    scores = runs.compute_scores(arms)
    keys = [organ.key for organ in runs.data.vocabulary]
    dice = {
        arm.title: {
            organ.key: average_over_seeds(scores[arm.key], labels=[organ.label]).mean for organ in runs.data.vocabulary
        }
        for arm in arms
    }
    division = runs.compute_partition()
    title = f"{runs.data.description}; {_format_seeds(runs)}"
    figure = plot_organ_dice(division, runs.data.vocabulary, dice, _DCA.title, title)
    shares = dict(zip((keys[label - 1] for label in division.ranking), division.proportions, strict=True))
    numbers = {method: {key: round_or_none(value) for key, value in found.items()} for method, found in dice.items()}
    return figure, {"share_of_voxels": {key: round(share, 5) for key, share in shares.items()}, "dice": numbers}


def _draw_label_ratios(runs: Runs, also: Also) -> tuple[Figure, dict[str, Any]]:
    """Figure 2."""
    data = runs.data
    whole = list(data.all_labeled or data.labeled)
    subsets = make_nested_subsets(whole, also.ratios)
    rows = [
        measure_stability(whole, data.vocabulary, size, mode)
        for mode in MODES
        for size in sorted({len(subset.cases) for subset in subsets})
    ]
    if also.subsets:
        subsets = list(also.subsets)
        named = {case.name: case for subset in (*subsets, Subset("", whole)) for case in subset.cases}
        whole = list(named.values())
    divisions = [divide(subset.cases, data.vocabulary, MODES[-1]) for subset in subsets]
    title = f"{data.description}; groups by the two largest log gaps"
    figure = plot_label_ratios([subset.title for subset in subsets], divisions, rows, data.vocabulary, title)
    return figure, {
        "compared_with": f"{len(whole)} cases",
        "subsets": [describe_subset(subset, data.vocabulary, whole) for subset in subsets],
        "random_subsets": [
            {key: round(value, 4) if isinstance(value, float) else value for key, value in vars(row).items()}
            for row in rows
        ],
    }


def _draw_overlays(runs: Runs, also: Also) -> tuple[Figure, dict[str, Any]]:
    """Figure 5: the test cases with the median and the lowest Dice of DCA."""
    arms = _select_methods(runs, also)
    scores = runs.compute_scores(arms)
    by_case = {arm.key: scores[arm.key][0].average_by_case() for arm in arms}
    order = sorted(runs.data.test, key=lambda case: by_case[_DCA.key][case.name])
    chosen = {case.name: case for case in (order[len(order) // 2], order[0])}
    predicted: dict[str, dict[str, np.ndarray]] = {name: {} for name in chosen}
    for arm in arms:
        strategy = runs.get_trained_strategy(arm)
        for name, case in chosen.items():
            predicted[name][arm.title] = predict(strategy.get_validated_network(), case, strategy.options)
    results = [
        CaseResults(
            name, case.hu, _get_truth(case), predicted[name], {arm.title: by_case[arm.key][name] for arm in arms},
            case.get_voxel_size(runs.common.grid),
        )
        for name, case in chosen.items()
    ]  # fmt: skip
    title = f"{runs.data.description}; seed {runs.seeds[0]}; the test cases with the median and the lowest Dice of DCA"
    dice = {arm.title: {name: round_or_none(by_case[arm.key][name]) for name in chosen} for arm in arms}
    return plot_overlays(results, runs.data.vocabulary, title), {"seed": runs.seeds[0], "dice": dice}


def _draw_feature_clusters(runs: Runs, also: Also) -> tuple[Figure, dict[str, Any]]:
    """Figure 6."""
    require_scikit_learn()
    voxels = sample_balanced_voxels(runs.data.test, _PER_ORGAN)
    clusters = {}
    arms = _select_methods(runs, also)
    for index, arm in enumerate(arms):
        strategy = runs.get_trained_strategy(arm)
        runs.report(index / len(arms), f"Features of {arm.title}")
        features = extract_features(
            strategy.network, get_last_block(strategy.network), runs.data.test, strategy.options, voxels
        )
        clusters[arm.title] = embed(features, voxels.labels)
    title = (
        f"{runs.data.description}; seed {runs.seeds[0]}; features of DeB-9 of the decoder that gives the result (of "
        "two networks, the first)"
    )
    figure = plot_clusters(clusters, voxels.labels, runs.data.vocabulary, title)
    silhouettes = {method: round(found.silhouette, 4) for method, found in clusters.items()}
    return figure, {"seed": runs.seeds[0], "voxels": len(voxels.labels), "silhouette": silhouettes}


def _draw_expert_variants(runs: Runs, _: Also) -> tuple[Figure, dict[str, Any]]:
    """Figure 7."""
    groups = {name: list(owned) for name, owned in runs.get_groups().items() if owned}
    scores = runs.compute_scores(FIGURES["fig7"].arms(runs, Also()))

    def compute_spread(found: Sequence[Scores], labels: list[int]) -> tuple[float, float]:
        spread = average_over_seeds(found, labels=labels)
        return spread.mean, spread.deviation

    dice = {
        group: {one: compute_spread(scores[make_expert_variant(*one).key], labels) for one in _COMBINATIONS}
        for group, labels in groups.items()
    }
    paper = {group: compute_spread(scores[STITCHED.key], labels) for group, labels in groups.items()}
    title = f"{runs.data.description}; {_format_seeds(runs)}"
    numbers = {
        group: {f"{depth}, dilation {dilation}": _to_json(spread) for (depth, dilation), spread in found.items()}
        for group, found in dice.items()
    }
    of_dca = {group: _to_json(spread) for group, spread in paper.items()}
    return plot_expert_variants(dice, paper, title), {"dice": numbers, "three_experts_of_dca": of_dca}


def _draw_fused_maps(runs: Runs, _: Also) -> tuple[Figure, dict[str, Any]]:
    """Figure 8: the test case with the median Dice of DCA; slices through its head and its tail organs."""
    first = replace(runs, seeds=runs.seeds[:1])
    scores = first.compute_scores([_DCA])[_DCA.key][0].average_by_case()
    order = sorted(runs.data.test, key=lambda case: scores[case.name])
    case = order[len(order) // 2]
    labels = _get_truth(case)
    groups = {name: owned for name, owned in runs.get_groups().items() if np.isin(labels, list(owned)).any()}
    strengths = {}
    for arm in FUSIONS:
        strategy: Strategy = runs.get_trained_strategy(arm)
        runs.report(0.9, f"Fused maps of {arm.title}")
        network = strategy.network
        strengths[arm.title] = compute_feature_norm(
            extract_feature_volume(network, get_last_fusion(network), case, strategy.options)
        )
    contrasts = {name: compute_contrast(values, case.hu, labels, groups) for name, values in strengths.items()}
    spacing = case.get_voxel_size(runs.common.grid)
    planes = []
    for group in ("head", "tail"):
        if group in groups:
            of_group = np.where(np.isin(labels, list(groups[group])), labels, 0)
            axial = find_fullest_slices(of_group, spacing)[0]
            planes.append((group, replace(axial, index=_find_largest_slice(of_group)).crop_to_body(case.hu)))
    title = f"{runs.data.description}; seed {runs.seeds[0]}; numbers: strength in organs / in the rest of the body"
    figure = plot_fused_maps(case.hu, strengths, contrasts, labels, groups, planes, title)
    numbers = {name: {group: round_or_none(value) for group, value in one.items()} for name, one in contrasts.items()}
    return figure, {"seed": runs.seeds[0], "case": case.name, "contrast": numbers}


@dataclass(frozen=True)
class PaperFigure:
    """A figure: how it is drawn, the arms it shows, and whether it needs every seed or only the first."""

    draw: Callable[[Runs, Also], tuple[Figure, dict[str, Any]]]
    arms: Callable[[Runs, Also], Sequence[Arm]]
    every_seed: bool = True


FIGURES: Mapping[str, PaperFigure] = {
    "fig1": PaperFigure(_draw_organ_dice, lambda runs, also: _select_methods(runs, also, with_all_labels=True)),
    "fig2": PaperFigure(_draw_label_ratios, lambda *_: ()),
    "fig5": PaperFigure(_draw_overlays, lambda runs, also: _select_methods(runs, also)),
    "fig6": PaperFigure(_draw_feature_clusters, lambda runs, also: _select_methods(runs, also), every_seed=False),
    "fig7": PaperFigure(
        _draw_expert_variants, lambda *_: (*(make_expert_variant(*one) for one in _COMBINATIONS), STITCHED)
    ),
    "fig8": PaperFigure(_draw_fused_maps, lambda *_: FUSIONS, every_seed=False),
}


def _select_methods(runs: Runs, also: Also, with_all_labels: bool = False) -> list[Arm]:
    """The methods to show. Full supervision is only included if all labels are known."""
    return [arm for arm in also.methods if not arm.all_labels or (with_all_labels and runs.data.all_labeled)]


def _get_truth(case: Case) -> np.ndarray:
    assert case.labels is not None
    return case.labels


def _find_largest_slice(labels: np.ndarray) -> int:
    return int(np.argmax((labels > 0).sum(axis=(1, 2))))


def _format_seeds(runs: Runs) -> str:
    return f"seed {runs.seeds[0]}" if len(runs.seeds) == 1 else f"mean of {len(runs.seeds)} seeds"


def _to_json(spread: tuple[float, float]) -> dict[str, float | None]:
    return {"mean": round_or_none(spread[0]), "deviation_over_seeds": round_or_none(spread[1])}


def _require_ras(runs: Runs) -> None:
    if runs.common.grid.orientation.upper() != "RAS":
        raise UserError("Figures need cases in RAS orientation.", "Use a grid in RAS.")
