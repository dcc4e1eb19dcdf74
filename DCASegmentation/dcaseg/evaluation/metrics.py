"""Segmentation metrics for each organ (overlap and surface distance), with policies for empty labels.

Dice and normalized surface Dice measure overlap, the others distance. The methods that the paper compares with use
three conventions for empty labels; each is available here under the name of its repository.

The surface of an organ consists of its voxels with a face neighbor outside it (MONAI's erosion, as in MedPy).
Normalized surface Dice measures the area of a surface between voxels (DeepMind's surface-distance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance

from ..errors import UserError
from ..imaging.label_comparison import compute_dice_by_label, count_labels
from ..imaging.size_limits import get_total_memory

Kind = Literal["overlap", "distance"]


@dataclass(frozen=True)
class EmptyPolicy:
    """Scores of an organ that is missing on both sides (``both_*``) or on one (``one_*``); NaN excludes it from means.

    If ``nothing_found`` is set, it is the score of every organ for a prediction without any organ.
    """

    name: str
    both_overlap: float
    both_distance: float
    one_distance: float
    one_overlap: float = 0.0
    nothing_found: float | None = None

    def score(self, kind: Kind, in_prediction: bool, in_truth: bool) -> float:
        """The score of an organ that is missing on at least one side. Raises ValueError if both sides have it."""
        if in_prediction and in_truth:
            raise ValueError("both sides have the organ, so its score must be measured")
        one = in_prediction or in_truth
        if kind == "overlap":
            return self.one_overlap if one else self.both_overlap
        return self.one_distance if one else self.both_distance


_NAN = math.nan

POLICIES = {
    policy.name: policy
    for policy in (
        # Ours: an organ missing on both sides is not scored. A missed or invented organ has a Dice of 0 but no
        # distance, so a distance must be read together with Dice.
        EmptyPolicy("leave_out", _NAN, _NAN, _NAN),
        # xmed-lab/DHC, GenericSSL, SKCDF: scores are in percent, and an organ missing on both sides scores 1, that is
        # 1 %. Absent organs lose nearly all of their Dice.
        EmptyPolicy("dhc", 0.01, 0.0, 128.0),
        # cicailalala/GALoss, test: the same with scores from 0 to 1, so that the 1 means 100 %.
        EmptyPolicy("galoss", 1.0, 0.0, 128.0),
        # The same repository, validation during training: 0 for all scores, which for a distance is the best value.
        EmptyPolicy("galoss_validation", 0.0, 0.0, 0.0, nothing_found=0.0),
    )
}


def get_policy(name: str) -> EmptyPolicy:
    """The policy ``name``. Raises UserError if there is none."""
    if name not in POLICIES:
        raise UserError(f"Unknown policy for empty labels: '{name}'.", f"Choose one of: {', '.join(POLICIES)}.")
    return POLICIES[name]


TOLERANCE_MM = 2.0
"""Distance (mm) within which a surface counts as correct for the normalized surface Dice."""


@dataclass(frozen=True)
class Metric:
    """A score of one organ in one case. ``key`` is its name in files and options, ``title`` in tables."""

    key: str
    title: str
    kind: Kind
    unit: str = ""


DICE = Metric("dice", "Dice", "overlap")
ASD = Metric("asd", "ASD", "distance", "mm")
ASD_VOXEL = Metric("asd_voxel", "ASD (voxels, one way)", "distance", "voxels")
HD95 = Metric("hd95", "HD95", "distance", "mm")
NSD = Metric("nsd", "NSD", "overlap")
METRICS = {metric.key: metric for metric in (DICE, ASD, ASD_VOXEL, HD95, NSD)}


def get_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics ``names``, without duplicates. Raises UserError for an unknown name."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"Unknown metric: '{name}'.", f"Choose from: {', '.join(METRICS)}.")
    return tuple(METRICS[name] for name in dict.fromkeys(names))


def measure(
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    n_labels: int,
    metrics: Sequence[Metric] = (DICE, ASD),
    policy: EmptyPolicy = POLICIES["leave_out"],
    tolerance_mm: float = TOLERANCE_MM,
) -> dict[str, np.ndarray]:
    """Scores (n_labels,) of the labels 1 to ``n_labels``, by metric key.

    - ``dice``: 2 |P and T| / (|P| + |T|), 0 to 1.
    - ``asd``: mean distance (mm) from all surface voxels of each side to the surface of the other.
    - ``asd_voxel``: mean distance from the prediction's surface voxels to the truth's surface, in voxels of any size.
      The methods that the paper compares with report ASD this way. It ignores what the prediction misses.
    - ``hd95``: the larger of the two directed 95th percentiles of the surface distances (mm).
    - ``nsd``: fraction of both surfaces within ``tolerance_mm`` of the other.

    ``predicted`` and ``truth`` are integer arrays (z, y, x), ``spacing`` is (z, y, x) in mm. ``policy`` gives the score
    of an organ that is missing on one side or both. Raises ValueError if the shapes differ.
    """
    overlap = compute_dice_by_label(predicted, truth, n_labels)
    scores = {metric.key: np.full(n_labels, np.nan) for metric in metrics}
    found, present = (count_labels(labels, n_labels + 1)[1:] > 0 for labels in (predicted, truth))
    nothing = not found.any() and policy.nothing_found is not None
    for index in range(n_labels):
        both = bool(found[index] and present[index])
        surfaces = _Surfaces(predicted, truth, index + 1, spacing) if both and len(metrics) > 1 else None
        for metric in metrics:
            if nothing:
                score = float(policy.nothing_found or 0.0)
            elif not both:
                score = policy.score(metric.kind, bool(found[index]), bool(present[index]))
            elif metric.key == DICE.key:
                score = float(overlap[index])
            else:
                surfaces = surfaces or _Surfaces(predicted, truth, index + 1, spacing)
                score = surfaces.score(metric, tolerance_mm)
            scores[metric.key][index] = score
    return scores


# Measured on a box of 200 x 200 x 200 voxels; of the overlap metrics only the normalized surface Dice counts here.
_BYTES_PER_VOXEL: dict[Kind, int] = {"overlap": 160, "distance": 24}


class _Surfaces:
    """One organ on both sides, cropped to its bounding box, in MONAI's shape (1, 1, z, y, x)."""

    def __init__(
        self, predicted: np.ndarray, truth: np.ndarray, label: int, spacing: tuple[float, float, float]
    ) -> None:
        one, other = predicted == label, truth == label
        box = _compute_bounding_box(one | other)
        self._label = label
        self._predicted = torch.from_numpy(one[box])[None, None]
        self._truth = torch.from_numpy(other[box])[None, None]
        self._spacing = list(spacing)

    def score(self, metric: Metric, tolerance_mm: float) -> float:
        """The surface distance in the unit of ``metric``, or the fraction of the surface within ``tolerance_mm``."""
        sides = (self._predicted, self._truth)
        self._require_memory(metric)
        if metric.key == ASD.key:
            score = compute_average_surface_distance(
                *sides, include_background=True, symmetric=True, spacing=self._spacing
            )
        elif metric.key == ASD_VOXEL.key:
            score = compute_average_surface_distance(*sides, include_background=True)
        elif metric.key == HD95.key:
            score = compute_hausdorff_distance(*sides, include_background=True, percentile=95, spacing=self._spacing)
        elif metric.key == NSD.key:
            score = compute_surface_dice(
                *sides, [tolerance_mm], include_background=True, spacing=self._spacing, use_subvoxels=True
            )
        else:
            raise ValueError(f"{metric.key} is not a surface metric")
        return float(score)

    def _require_memory(self, metric: Metric) -> None:
        """Raise UserError if this computer has too little memory, before a library is killed for it."""
        voxels = self._predicted.numel()
        needed, memory = voxels * _BYTES_PER_VOXEL[metric.kind], get_total_memory()
        if memory is not None and needed > memory:
            size = " x ".join(map(str, reversed(self._predicted.shape[2:])))
            raise UserError(
                f"{metric.title} of label {self._label} needs about {needed / 2**30:.0f} GiB of memory, because its "
                f"voxels span {size} voxels; this computer has {memory / 2**30:.0f} GiB.",
                "Remove stray voxels from the label map, or measure only dice.",
            )


def _compute_bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    sides = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return sides[0], sides[1], sides[2]
