"""CLD: calibrating the label distribution (Lin et al., MICCAI 2022), on cross pseudo supervision.

Classes weigh (n_max / n_k)^(1/3) by labelled voxels, fixed; the supervised loss is weighted cross-entropy + weighted
foreground Dice. A bank keeps each network's confidence in each class on labelled voxels
(``class_statistics.Confidence``); in the cross loss a voxel of class k is kept with probability ((1 - conf_k) / max
(1 - conf))^(1/2), and the loss is the mean over all voxels of weight x mask x cross-entropy.

What deviates from the code: a class absent from the labelled batches keeps its confidence, instead of moving to 0;
the first bank is empty (all voxels kept), not random. CLD's crop along the long axis of a knee is left out. Cost 1
CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Facts, StepState, option
from .class_statistics import Confidence, cube_root_weights
from .losses import sampled, voxel_loss, weighted_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class CLDOptions:
    """The row is DHC's port of CLD, which updates its bank every 8 steps; the paper's code every 2."""

    variant: Literal["row", "published"] = option("row", "row: bank updated every 8 steps; published: every 2")
    mask_by: Literal["own", "pseudo"] = option(
        "own", "whose class picks a voxel's rate: own argmax, or the pseudo-label"
    )


class CLD(TwoNetworks):
    """Cross losses on voxels sampled by how little confidence their class has."""

    name: ClassVar[str] = "cld"
    Options: ClassVar[type[CLDOptions]] = CLDOptions
    own: CLDOptions
    needs_every_organ: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        period = 8 if self.own.variant == "row" else 2
        self.banks = nn.ModuleList(Confidence(self.channels, period) for _ in range(2))
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(self.channels))

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        self.weights.copy_(cube_root_weights(torch.tensor(facts.voxels, dtype=torch.float)))

    def observe(self, answers: list[Tensor], batch: Batch, step_state: StepState) -> None:
        labelled = len(batch.volumes)
        for bank, answer in zip(self.banks, answers, strict=True):
            bank.observe(answer[:labelled].softmax(dim=1), batch.labels)  # type: ignore[operator]

    def supervised(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        return weighted_loss(logits, batch.labels, self.weights)

    def crossed(self, which: int, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        by = labels if self.own.mask_by == "pseudo" else logits.detach().argmax(dim=1)
        bank: Confidence = self.banks[which]  # type: ignore[assignment]
        mask = sampled(by, bank.rates(), self.random(step_state, which))
        return voxel_loss(logits, labels, self.weights, mask)
