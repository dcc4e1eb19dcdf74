"""Measures the effect of our default shortcuts on accuracy: Dice with and without them on the same CTs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..evaluation.metrics import DICE
from ..evaluation.scores import mean_or_nan
from ..evaluation.scoring import score_labels
from ..inference.backends.selection import AUTO
from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from ..models.bundle import Bundle
from ..training.sources import TEST_SEEDS, scan_phantom
from .pipelines import segment_with_plain_pipeline

MAX_LOSS = 0.002


@dataclass(frozen=True)
class LabeledCase:
    """A CT and its labels on the same grid. Labels in ``unannotated`` do not count."""

    name: str
    ct: sitk.Image
    truth: sitk.Image
    unannotated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A case segmented with one of our settings and by the plain pipeline.

    ``ours`` and ``plain`` are the mean Dice over organs, ``same`` is the fraction of voxels with the same label in
    both, ``cpu_s`` the CPU time of ours in seconds.
    """

    name: str
    setting: str
    ours: float
    plain: float
    same: float
    cpu_s: float

    @property
    def loss(self) -> float:
        """Difference in Dice, positive if ours is lower."""
        return self.plain - self.ours


DEFAULTS: Mapping[str, SegmentOptions] = {"defaults": SegmentOptions()}


def make_overlap_settings(overlaps: Iterable[float]) -> dict[str, SegmentOptions]:
    """The default settings, and those with other overlaps of the windows, by name."""
    return {**DEFAULTS, **{f"overlap {overlap:g}": SegmentOptions(overlap=overlap) for overlap in overlaps}}


def generate_phantom_cases(count: int) -> Iterator[LabeledCase]:
    """Yield ``count`` phantoms that are not used in training."""
    for seed in range(TEST_SEEDS, TEST_SEEDS + count):
        phantom = scan_phantom(seed)
        yield LabeledCase(f"phantom {seed}", phantom.ct, phantom.labels)


def compare(
    bundle: Bundle,
    cases: Iterable[LabeledCase],
    settings: Mapping[str, SegmentOptions] = DEFAULTS,
    on_case: Callable[[Comparison], None] | None = None,
) -> list[Comparison]:
    """Segment each case with each of ``settings`` and with the plain pipeline, on the CPU."""
    segmenter = Segmenter(bundle, "cpu", backend=AUTO)
    network = bundle.network().eval()
    found = []
    for case in cases:
        plain = segment_with_plain_pipeline(case.ct, bundle, network)
        plain_dice = _compute_mean_dice(plain, case, len(segmenter.vocabulary))
        for setting, options in settings.items():
            started = time.process_time()
            ours = segmenter.segment(case.ct, options).labels
            cpu_s = time.process_time() - started
            same = float(np.mean(sitk.GetArrayViewFromImage(ours) == sitk.GetArrayViewFromImage(plain)))
            dice = _compute_mean_dice(ours, case, len(segmenter.vocabulary))
            found.append(Comparison(case.name, setting, dice, plain_dice, same, cpu_s))
            if on_case is not None:
                on_case(found[-1])
    return found


def compute_mean_dice_drop(comparisons: Iterable[Comparison]) -> float:
    """Mean loss of Dice over the cases."""
    return float(np.mean([comparison.loss for comparison in comparisons]))


def _compute_mean_dice(labels: sitk.Image, case: LabeledCase, n_labels: int) -> float:
    scores: NDArray[np.float64] = score_labels(labels, case.truth, n_labels)[DICE.key]
    scores[[label - 1 for label in case.unannotated]] = np.nan
    return float(mean_or_nan(scores[None], axis=1)[0])
