"""Two networks that teach each other: the chassis of CPS and of the systems that DHC's authors built on it.

Both networks see all patches, labelled or not. Each learns from the labels, and on all patches from the other's
argmax, which hands no gradient back. They start from different draws, and answer with the mean of their logits. Cost:
both networks forward and backward on every patch of a step, the measure (CPS = 1) of the others' cost.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Facts, Loss, MeanOfNetworks, ScoredNetwork, StepState, Strategy, plain_vnet
from .class_statistics import update_weight_average, voxels_of
from .losses import agreement, weighted_cross_entropy, weighted_loss


class TwoNetworks(Strategy):
    """A subclass gives the two losses, and looks at the answers in ``observe`` before they are asked for."""

    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        # The second draws other weights than the first: the method lives on their difference.
        self.network = plain_vnet(options, groups)
        self.second = plain_vnet(options, groups)
        self.channels = self.network.out_channels

    def answering(self) -> ScoredNetwork:
        return MeanOfNetworks([self.network, self.second])

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("all",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        labelled = len(batch.volumes)
        volumes = batch.volumes if batch.unlabelled is None else torch.cat([batch.volumes, batch.unlabelled])
        answers = [self.network(volumes).float(), self.second(volumes).float()]
        self.observe([answer.detach() for answer in answers], batch, step_state)
        supervised = [
            self.supervised(which, answer[:labelled], batch, step_state) for which, answer in enumerate(answers)
        ]
        total = supervised[0] + supervised[1]
        values = {"supervised": total.detach() / 2}
        if batch.unlabelled is not None:
            labels = [answer.detach().argmax(dim=1) for answer in answers]
            crossed = self.crossed(0, answers[0], labels[1], step_state) + self.crossed(
                1, answers[1], labels[0], step_state
            )
            total = total + self.weight(step_state) * crossed
            values["unsupervised"] = crossed.detach()
            values["agreement"] = agreement(labels[0][labelled:], labels[1][labelled:])
        return Loss(total, values)

    def observe(self, answers: list[Tensor], batch: Batch, step_state: StepState) -> None:
        """Look at both networks' logits on all patches, labelled ones first, before the losses of the step."""

    def supervised(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """The loss of network ``which`` (0, 1) on the labelled patches."""
        raise NotImplementedError

    def crossed(self, which: int, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        """The loss of network ``which`` on all patches against the ``labels`` of the other."""
        raise NotImplementedError


class WeighedNetworks(TwoNetworks):
    """Each network has weights of classes that follow its own labels: weighted cross-entropy + weighted foreground Dice
    on labels, weighted cross-entropy against the other. They begin at the weights of the labelled voxels."""

    _DECAY = 0.99

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(2, self.channels))
        self._now = self.weights

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        self.weights.copy_(self.weights_of(torch.tensor(facts.voxels, dtype=torch.float)))

    def weights_of(self, voxels: Tensor) -> Tensor:
        """The weights (channel,) for voxels of each class."""
        raise NotImplementedError

    def counted(self, answer: Tensor, labelled: int) -> Tensor:
        """The part of a network's answer (batch, ...) whose labels are counted; the first patches are ``labelled``."""
        return answer

    def observe(self, answers: list[Tensor], batch: Batch, step_state: StepState) -> None:
        if batch.unlabelled is not None:
            for kept, answer in zip(self.weights, answers, strict=True):
                voxels = voxels_of(self.counted(answer, len(batch.volumes)).argmax(dim=1), self.channels)
                update_weight_average(kept, self.weights_of(voxels), self._DECAY)
        self._now = self.weights.clone()

    def supervised(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        return weighted_loss(logits, batch.labels, self._now[which])

    def crossed(self, which: int, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        return weighted_cross_entropy(logits, labels, self._now[which])
