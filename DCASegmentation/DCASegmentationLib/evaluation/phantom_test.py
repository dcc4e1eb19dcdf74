"""How well a bundle finds the organs of synthetic people it has never seen, and of single CTs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from ..organs import Vocabulary
from ..training.sources.phantoms import TEST_SEEDS, draw_acquisition, scan_phantom
from .empty_labels import POLICIES, EmptyPolicy
from .metrics import DICE, TOLERANCE_MM, Metric, measure
from .scores import Scores

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Scoring:
    """By what a label map is scored; see ``metrics.measure``."""

    metrics: tuple[Metric, ...] = (DICE,)
    policy: EmptyPolicy = POLICIES["leave_out"]
    tolerance_mm: float = TOLERANCE_MM


def score_on_phantoms(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    count: int,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    first_seed: int = TEST_SEEDS,
    progress: Progress | None = None,
    scoring: Scoring = Scoring(),
) -> Scores:
    """Scores on ``count`` phantoms, each on its CT's own grid.

    The people start at ``first_seed``, which training and validation never draw; spacing, phase and noise differ
    from person to person.
    """
    scores = Scores(vocabulary, scoring.metrics)
    for index in range(count):
        seed = first_seed + index
        phantom = scan_phantom(seed)
        scores.add(
            f"phantom {seed} ({draw_acquisition(seed).phase})",
            score_case(segmenter, phantom.ct, phantom.labels, options, scoring),
        )
        if progress is not None:
            progress((index + 1) / count, f"Phantom {index + 1} of {count}")
    return scores


def score_case(
    segmenter: Segmenter,
    ct: sitk.Image,
    truth: sitk.Image,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    scoring: Scoring = Scoring(),
) -> dict[str, np.ndarray]:
    """Scores (K,) by metric of the segmentation of ``ct`` against the label map ``truth`` on the same grid."""
    return score_labels(segmenter.segment(ct, options).labels, truth, len(segmenter.vocabulary), scoring)


def score_labels(
    predicted: sitk.Image,
    truth: sitk.Image,
    n_labels: int,
    scoring: Scoring = Scoring(),
) -> dict[str, np.ndarray]:
    """Scores (K,) by metric of one label map against another on the same grid."""
    x, y, z = truth.GetSpacing()
    return measure(
        sitk.GetArrayViewFromImage(predicted),
        sitk.GetArrayViewFromImage(truth),
        (z, y, x),
        n_labels,
        scoring.metrics,
        scoring.policy,
        scoring.tolerance_mm,
    )
