"""Adsh: adaptive thresholding (Guo and Li, ICML 2022).

Every class keeps the same share of its pseudo-labels as the most frequent class keeps at a fixed threshold τ: with q
the share of the majority's voxels with p >= τ, the threshold of class k is the confidence that q of its voxels reach.

``row``: DHC's port, on CPS: the cross loss of a network is the mean over all voxels of 1[p_other >= threshold of the
other's class] x cross-entropy, τ = .9, thresholds renewed every quarter of an epoch; labels teach by cross-entropy +
foreground Dice. The port multiplies a network's logits by the mask, so that a refused voxel still costs log C and an
accepted one pushes its class up without pushing the others down; ours masks the loss. Cost 1 CPS.
``published``: on FixMatch, τ = .95, renewed every epoch. Cost .6 CPS. Both take quantiles from a histogram of a
thousand bins, not from stored volumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, StepState, option
from .class_statistics import Quantiles
from .fixmatch import CONFIDENT, FixMatch
from .losses import voxel_loss, weighted_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class AdshOptions:
    """Which reading."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port on CPS; published: on FixMatch")


def renewed(quantiles: Quantiles, threshold: float) -> Tensor:
    """The thresholds (channel,) that follow from the voxels seen, which are then forgotten."""
    majority = int(quantiles.histogram.sum(dim=1).argmax())
    found = quantiles.thresholds(quantiles.share_above(majority, threshold))
    quantiles.clear()
    return found


class PublishedAdsh(FixMatch):
    """A threshold for each class in place of FixMatch's one."""

    name: ClassVar[str] = "adsh"
    Options: ClassVar[type[AdshOptions]] = AdshOptions

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.quantiles = Quantiles(self.channels)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.full((self.channels,), CONFIDENT))

    def accepted(self, confidence: Tensor, labels: Tensor) -> Tensor:
        self.quantiles.observe(confidence, labels)
        return confidence >= self.thresholds[labels]

    def on_step_end(self, step_state: StepState) -> None:
        if (step_state.step + 1) % self.epoch_steps == 0 and self.quantiles.histogram.any():
            self.thresholds.copy_(renewed(self.quantiles, CONFIDENT))


class Adsh(TwoNetworks):
    """CPS on voxels above their class's threshold."""

    name: ClassVar[str] = "adsh"
    published = PublishedAdsh
    Options: ClassVar[type[AdshOptions]] = AdshOptions
    _MAJORITY = 0.9

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.quantiles = nn.ModuleList(Quantiles(self.channels) for _ in range(2))
        # 0 until they are known: plain CPS.
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.zeros(2, self.channels))
        self._accepted: list[Tensor] = []

    def observe(self, answers: list[Tensor], batch: Batch, step_state: StepState) -> None:
        labelled = len(batch.volumes)
        self._accepted = []
        for quantiles, thresholds, answer in zip(self.quantiles, self.thresholds, answers, strict=True):
            confidence, labels = answer.softmax(dim=1).max(dim=1)
            if batch.unlabelled is not None:
                quantiles.observe(confidence[labelled:], labels[labelled:])  # type: ignore[operator]
            self._accepted.append(confidence >= thresholds[labels])

    def supervised(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        return weighted_loss(logits, batch.labels, torch.ones(self.channels, device=logits.device))

    def crossed(self, which: int, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        return voxel_loss(logits, labels, mask=self._accepted[1 - which])

    def on_step_end(self, step_state: StepState) -> None:
        if (step_state.step + 1) % max(1, self.epoch_steps // 4) == 0:
            for kept, quantiles in zip(self.thresholds, self.quantiles, strict=True):
                assert isinstance(quantiles, Quantiles)
                if quantiles.histogram.any():
                    kept.copy_(renewed(quantiles, self._MAJORITY))
