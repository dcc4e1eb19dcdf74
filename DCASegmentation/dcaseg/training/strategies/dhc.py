"""DHC: two co-trained networks with different weights of classes (Wang and Li, MICCAI 2023).

Network 1 weighs classes by how hard they are to learn (DiffDW, ``class_statistics.Difficulty``), network 2 by how
rare they are in its own pseudo-labels (DistDW, ``class_statistics.distribution_weights``, running mean .99 from the
labelled counts). With these, L_w = weighted cross-entropy + weighted foreground Dice on labels, weighted
cross-entropy against the other's argmax on all patches. Weights are those after this step's own predictions.

What deviates from the code: classes absent from a batch do not count as learned or unlearned; a batch of
pseudo-labels that all weigh nothing gives 0 instead of 0/0; counts are summed over processes. Cost 1 CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Facts, StepState, option
from .class_statistics import Difficulty, distribution_weights, update_weight_average, voxels_of
from .losses import weighted_cross_entropy, weighted_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class DHCOptions:
    """How fast the weights by distribution follow."""

    decay: float = option(0.99, "share of the old weights by distribution that stays in a step")


class DHC(TwoNetworks):
    """Dual-debiased heterogeneous co-training."""

    name: ClassVar[str] = "dhc"
    Options: ClassVar[type[DHCOptions]] = DHCOptions
    own: DHCOptions
    needs_every_organ: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.difficulty = Difficulty(self.channels)
        self.distribution: Tensor
        self.register_buffer("distribution", torch.ones(self.channels))
        self._weights: list[Tensor] = []

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        self.distribution.copy_(distribution_weights(torch.tensor(facts.voxels, dtype=torch.float)))

    def observe(self, answers: list[Tensor], batch: Batch, step_state: StepState) -> None:
        labelled = len(batch.volumes)
        hard = self.difficulty.observe(answers[0][:labelled].argmax(dim=1), batch.labels)
        if batch.unlabelled is not None:
            found = voxels_of(answers[1][labelled:].argmax(dim=1), self.channels)
            update_weight_average(self.distribution, distribution_weights(found), self.own.decay)
        self._weights = [hard, self.distribution.clone()]

    def supervised(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        return weighted_loss(logits, batch.labels, self._weights[which])

    def crossed(self, which: int, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        return weighted_cross_entropy(logits, labels, self._weights[which])
