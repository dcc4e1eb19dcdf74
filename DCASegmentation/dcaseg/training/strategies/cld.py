"""CLD: calibrating the label distribution (Lin et al., MICCAI 2022), based on cross pseudo supervision.

Class weights are (n_max / n_k)^(1/3), from the labeled voxels, and fixed. The supervised loss is weighted cross-entropy
+ weighted foreground Dice. A bank stores each network's confidence in each class on labeled voxels
(``class_statistics.ClassConfidence``). In the cross loss, a voxel of class k is kept with probability ((1 - conf_k) /
max (1
- conf))^(1/2), and the loss is the mean over all voxels of weight x mask x cross-entropy.

Deviations from the code: a class that is absent from the labeled batches keeps its confidence instead of moving to 0;
the bank is initially empty (all voxels are kept), not random; its decay grows to .999, which is constant in the code;
CLD's crop along the long axis of a knee is left out. Cost: as CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...method.log_gap import Partition
from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, DatasetFingerprint, StepState
from .class_statistics import ClassConfidence, compute_cube_root_weights
from .losses import sample_mask, voxel_loss, weighted_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class CLDOptions:
    """Options of CLD. The row is DHC's port, which updates its bank every 8 steps; the paper's code does so every 2."""

    variant: Literal["row", "published"] = option("row", "row: bank updated every 8 steps; published: every 2")
    mask_by: Literal["own", "pseudo"] = option(
        "own", "the class that determines a voxel's rate: own argmax, or the pseudo-label"
    )


class CLD(TwoNetworks):
    """CPS whose cross losses sample more voxels of classes with low confidence."""

    name: ClassVar[str] = "cld"
    Options: ClassVar[type[CLDOptions]] = CLDOptions
    own: CLDOptions
    needs_every_organ: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        period = 8 if self.strategy_options.variant == "row" else 2
        self.banks = nn.ModuleList(ClassConfidence(self.channels, period) for _ in range(2))
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(self.channels))

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        self.weights.copy_(compute_cube_root_weights(torch.tensor(fingerprint.voxels, dtype=torch.float)))

    def observe(self, outputs: list[Tensor], batch: Batch, step_state: StepState) -> None:
        """See ``TwoNetworks.observe``."""
        labeled = len(batch.volumes)
        for bank, logits in zip(self.banks, outputs, strict=True):
            bank.observe(logits[:labeled].softmax(dim=1), batch.labels)  # type: ignore[operator]

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """See ``TwoNetworks.compute_supervised_loss``."""
        return weighted_loss(logits, batch.labels, self.weights)

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """See ``TwoNetworks.compute_cross_supervision_loss``."""
        by = labels if self.strategy_options.mask_by == "pseudo" else logits.detach().argmax(dim=1)
        bank: ClassConfidence = self.banks[which]  # type: ignore[assignment]
        mask = sample_mask(by, bank.compute_sampling_rates(), self.make_generator(step_state, which))
        return voxel_loss(logits, labels, self.weights, mask)
