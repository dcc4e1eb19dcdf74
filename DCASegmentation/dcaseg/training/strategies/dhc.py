"""DHC: two co-trained networks with different class weights (Wang and Li, MICCAI 2023).

Network 1 weights classes by how difficult they are to learn (DiffDW, ``class_statistics.ClassDifficulty``), network 2
by how rare they are in its own pseudo-labels (DistDW, ``class_statistics.compute_distribution_weights``, running mean
.99 from the labeled counts). With these weights, the loss is weighted cross-entropy + weighted foreground Dice on
labels, and weighted cross-entropy with the other's argmax on all patches. The weights include this step's predictions.

Deviations from the code: classes that are absent from a batch do not count as learned or unlearned; a batch whose
pseudo-labels all have weight 0 gives 0 instead of 0/0; counts are summed over processes. Cost: as CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...option_fields import option
from ..ema import update_average
from ..options import TrainingOptions
from .base import Batch, DatasetFingerprint, StepState
from .class_statistics import ClassDifficulty, compute_distribution_weights, count_voxels
from .losses import weighted_cross_entropy, weighted_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class DHCOptions:
    """Options of DHC."""

    decay: float = option(0.99, "decay of the running mean of the distribution weights", minimum=0, below=1)


class DHC(TwoNetworks):
    """Dual-debiased heterogeneous co-training."""

    name: ClassVar[str] = "dhc"
    Options: ClassVar[type[DHCOptions]] = DHCOptions
    own: DHCOptions
    needs_every_organ: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.difficulty = ClassDifficulty(self.channels)
        self.distribution: Tensor
        self.register_buffer("distribution", torch.ones(self.channels))
        self._weights: list[Tensor] = []

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        self.distribution.copy_(compute_distribution_weights(torch.tensor(fingerprint.voxels, dtype=torch.float)))

    def observe(self, outputs: list[Tensor], batch: Batch, step_state: StepState) -> None:
        """See ``TwoNetworks.observe``."""
        labeled = len(batch.volumes)
        difficulty = self.difficulty.observe(outputs[0][:labeled].argmax(dim=1), batch.labels)
        if batch.unlabeled is not None:
            voxels = count_voxels(outputs[1][labeled:].argmax(dim=1), self.channels)
            update_average(self.distribution, compute_distribution_weights(voxels), self.strategy_options.decay)
        self._weights = [difficulty, self.distribution.clone()]

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """See ``TwoNetworks.compute_supervised_loss``."""
        return weighted_loss(logits, batch.labels, self._weights[which])

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """See ``TwoNetworks.compute_cross_supervision_loss``."""
        return weighted_cross_entropy(logits, labels, self._weights[which])
