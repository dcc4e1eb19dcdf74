"""How well a bundle finds the organs of synthetic people it has never seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk

from ..imaging.overlap import dice_by_label
from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from ..organs import Vocabulary
from ..training.sources.phantoms import TEST_SEEDS, draw_acquisition, scan_phantom
from .scores import Scores

Progress = Callable[[float, str], None]


def score_on_phantoms(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    count: int,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    first_seed: int = TEST_SEEDS,
    progress: Progress | None = None,
) -> Scores:
    """Dice on ``count`` phantoms, each on its CT's own grid.

    The people start at ``first_seed``, which training and validation never draw; spacing, phase and noise differ
    from person to person.
    """
    scores = Scores(vocabulary)
    for index in range(count):
        seed = first_seed + index
        phantom = scan_phantom(seed)
        scores.add(
            f"phantom {seed} ({draw_acquisition(seed).phase})", score_case(segmenter, phantom.ct, phantom.labels)
        )
        if progress is not None:
            progress((index + 1) / count, f"Phantom {index + 1} of {count}")
    return scores


def score_case(
    segmenter: Segmenter,
    ct: sitk.Image,
    truth: sitk.Image,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
) -> np.ndarray:
    """Dice (K,) of the segmentation of ``ct`` against the label map ``truth`` on the same grid."""
    labels = segmenter.segment(ct, options).labels  # a view does not keep its image alive
    return dice_by_label(
        sitk.GetArrayViewFromImage(labels), sitk.GetArrayViewFromImage(truth), len(segmenter.vocabulary)
    )
