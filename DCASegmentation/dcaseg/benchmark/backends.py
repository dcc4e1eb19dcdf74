"""Compares backends on whole CTs: CPU time of the network, and how far the labels agree with those of a reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..imaging.label_comparison import compute_dice_by_label
from ..inference.options import SegmentOptions
from ..inference.segmenter import Model, Segmenter


@dataclass(frozen=True)
class BackendRun:
    """One CT segmented with one backend.

    ``cpu_s`` is the CPU time of the whole segmentation, without reading and writing. ``agreement`` is the Dice of each
    organ's labels with those of the first backend, by key; organs that neither of them found are missing. ``entropy``
    and ``attention`` are the mean absolute differences from the first backend's maps; None without maps.
    """

    case: str
    backend: str
    round: int
    cpu_s: float
    agreement: dict[str, float]
    entropy: float | None = None
    attention: float | None = None

    @property
    def mean_agreement(self) -> float:
        """Mean Dice over the organs; 1 without organs."""
        return float(np.mean(list(self.agreement.values()))) if self.agreement else 1.0

    @property
    def min_agreement(self) -> tuple[float, str]:
        """The lowest Dice, and its organ."""
        return min(((dice, key) for key, dice in self.agreement.items()), default=(1.0, ""))


def compare_backends(
    model: Model,
    cts: Iterable[tuple[str, sitk.Image]],
    backends: Sequence[str],
    rounds: int = 1,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    on_run: Callable[[BackendRun], None] | None = None,
) -> list[BackendRun]:
    """Segment each of ``cts`` (name and image) on the CPU with each of ``backends``, ``rounds`` times in turn.

    The first backend is the reference. Before, each backend segments a few slices, because it may have to convert the
    network. Raises UserError for a backend that cannot run here.
    """
    segmenters = {name: Segmenter(model, "cpu", backend=name) for name in backends}
    runs: list[BackendRun] = []
    for name, ct in cts:
        if not runs:
            for segmenter in segmenters.values():
                segmenter.segment(_extract_middle_slices(ct), options)
        reference = None
        for number in range(1, rounds + 1):
            for backend, segmenter in segmenters.items():
                started = time.process_time()
                result = segmenter.segment(ct, options)
                cpu_s = time.process_time() - started
                reference = reference or result
                agreement = compute_dice_by_organ(model, result.labels, reference.labels)
                entropy = attention = None
                if result.entropy is not None and reference.entropy is not None:
                    entropy = _compute_mean_absolute_error(result.entropy, reference.entropy)
                if result.attention:
                    attention = max(
                        _compute_mean_absolute_error(image, reference.attention[level][expert])
                        for level, experts in result.attention.items()
                        for expert, image in experts.items()
                    )
                runs.append(BackendRun(name, backend, number, cpu_s, agreement, entropy, attention))
                if on_run is not None:
                    on_run(runs[-1])
    return runs


def compute_dice_by_organ(model: Model, labels: sitk.Image, reference: sitk.Image) -> dict[str, float]:
    """Dice of each organ in two label maps on the same grid, by key; organs that are in neither are missing."""
    vocabulary = model.metadata.vocabulary
    ours, theirs = (sitk.GetArrayFromImage(image) for image in (labels, reference))
    scores = compute_dice_by_label(ours, theirs, len(vocabulary))
    by_key = {organ.key: float(scores[organ.label - 1]) for organ in vocabulary}
    return {key: dice for key, dice in by_key.items() if not np.isnan(dice)}


def _extract_middle_slices(ct: sitk.Image) -> sitk.Image:
    depth = ct.GetSize()[2]
    count = min(8, depth)
    first = (depth - count) // 2
    return ct[:, :, first : first + count]


def _compute_mean_absolute_error(image: sitk.Image, reference: sitk.Image) -> float:
    return float(np.abs(sitk.GetArrayFromImage(image) - sitk.GetArrayFromImage(reference)).mean())
