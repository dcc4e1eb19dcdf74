"""Adsh: adaptive thresholding (Guo and Li, ICML 2022).

Every class keeps the same fraction of its pseudo-labels as the most frequent class keeps with a fixed threshold τ. If q
is the fraction of the majority class's voxels with p >= τ, the threshold of class k is the confidence that the fraction
q of its voxels reaches.

``row``: DHC's port, based on CPS. The cross loss of a network is the mean over all voxels of 1[p_other >= threshold of
the other's class] x cross-entropy; τ = .9; the thresholds are updated every quarter of an epoch. The supervised loss is
cross-entropy + foreground Dice or, with ``class_balance``, twice the run's (``losses.supervised_loss``). The port
multiplies a network's logits by the mask, so a rejected voxel still costs log C, and an accepted one increases its
class without decreasing the others; ours masks the loss. Cost: as CPS. ``published``: based on FixMatch, τ = .95,
updated every epoch. Cost: 0.6 times CPS.

Both use quantiles of a histogram with a thousand bins, not of stored volumes. A class that no network predicts in a
period keeps its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...method.log_gap import Partition
from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, StepState
from .class_statistics import ConfidenceHistogram
from .fixmatch import CONFIDENCE_THRESHOLD, FixMatch
from .losses import supervised_loss, unweighted_loss, voxel_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class AdshOptions:
    """Options of Adsh."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port on CPS; published: on FixMatch")


def update_thresholds(thresholds: Tensor, quantiles: ConfidenceHistogram, threshold: float) -> None:
    """Set ``thresholds`` (channel,) from the observed voxels, and clear ``quantiles``.

    A class without a voxel keeps its threshold; with a threshold of 1, its next voxels would all be rejected.
    """
    voxels = quantiles.histogram.sum(dim=1)
    new = quantiles.compute_thresholds(quantiles.compute_fraction_above(int(voxels.argmax()), threshold))
    thresholds.copy_(torch.where(voxels > 0, new, thresholds))
    quantiles.clear()


class PublishedAdsh(FixMatch):
    """FixMatch with a threshold for each class."""

    name: ClassVar[str] = "adsh"
    Options: ClassVar[type[AdshOptions]] = AdshOptions

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.quantiles = ConfidenceHistogram(self.channels)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.full((self.channels,), CONFIDENCE_THRESHOLD))

    def compute_confidence_mask(self, confidence: Tensor, labels: Tensor) -> Tensor:
        """See ``FixMatch.compute_confidence_mask``."""
        self.quantiles.observe(confidence, labels)
        return confidence >= self.thresholds[labels]

    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        if (step_state.step + 1) % self.epoch_steps == 0 and self.quantiles.histogram.any():
            update_thresholds(self.thresholds, self.quantiles, CONFIDENCE_THRESHOLD)


class Adsh(TwoNetworks):
    """CPS on voxels above their class's threshold."""

    name: ClassVar[str] = "adsh"
    published = PublishedAdsh
    Options: ClassVar[type[AdshOptions]] = AdshOptions
    _MAJORITY = 0.9

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.quantiles = nn.ModuleList(ConfidenceHistogram(self.channels) for _ in range(2))
        # Until the thresholds are known they are 0, as in CPS.
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.zeros(2, self.channels))
        self._accepted: list[Tensor] = []

    def observe(self, outputs: list[Tensor], batch: Batch, step_state: StepState) -> None:
        """See ``TwoNetworks.observe``."""
        labeled = len(batch.volumes)
        self._accepted = []
        for quantiles, thresholds, logits in zip(self.quantiles, self.thresholds, outputs, strict=True):
            confidence, labels = logits.softmax(dim=1).max(dim=1)
            if batch.unlabeled is not None:
                quantiles.observe(confidence[labeled:], labels[labeled:])  # type: ignore[operator]
            self._accepted.append(confidence >= thresholds[labels])

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """See ``TwoNetworks.compute_supervised_loss``."""
        return supervised_loss(logits, batch.labels, self.options, step_state, unweighted_loss, scale=2)

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """See ``TwoNetworks.compute_cross_supervision_loss``."""
        return voxel_loss(logits, labels, mask=self._accepted[1 - which])

    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        if (step_state.step + 1) % -(-self.epoch_steps // 4) == 0:
            for thresholds, quantiles in zip(self.thresholds, self.quantiles, strict=True):
                assert isinstance(quantiles, ConfidenceHistogram)
                if quantiles.histogram.any():
                    update_thresholds(thresholds, quantiles, self._MAJORITY)
