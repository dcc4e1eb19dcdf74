"""Two networks that teach each other: the base of CPS and of the methods that DHC's authors built on it.

Both networks process all patches. Each learns from the labels and, on all patches, from the other's argmax, without a
gradient to the other. They are initialized differently, and the result is the mean of their logits. The cost, a forward
and backward pass of both networks on every patch of a step, is the unit of cost of the other methods (CPS).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ..ema import update_average
from ..options import TrainingOptions
from .base import Batch, DatasetFingerprint, Loss, MeanOfNetworks, ScoredNetwork, StepState, Strategy, build_vnet
from .class_statistics import count_voxels
from .losses import compute_agreement, weighted_cross_entropy, weighted_loss


class TwoNetworks(Strategy):
    """A subclass defines the two losses. It may collect statistics in ``observe``, which is called before them."""

    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        # The two networks have different initial weights; the method depends on their difference.
        self.network = build_vnet(options, groups)
        self.second = build_vnet(options, groups)
        self.channels = self.network.out_channels

    def get_validated_network(self) -> ScoredNetwork:
        """See ``Strategy.get_validated_network``."""
        return MeanOfNetworks([self.network, self.second])

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("all",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        labeled = len(batch.volumes)
        volumes = batch.volumes if batch.unlabeled is None else torch.cat([batch.volumes, batch.unlabeled])
        outputs = [self.network(volumes).float(), self.second(volumes).float()]
        self.observe([logits.detach() for logits in outputs], batch, step_state)
        supervised = [
            self.compute_supervised_loss(which, logits[:labeled], batch, step_state)
            for which, logits in enumerate(outputs)
        ]
        total = supervised[0] + supervised[1]
        values = {"supervised": total.detach() / 2}
        if batch.unlabeled is not None:
            labels = [logits.detach().argmax(dim=1) for logits in outputs]
            crossed = self.compute_cross_supervision_loss(
                0, outputs[0], labels[1], step_state
            ) + self.compute_cross_supervision_loss(1, outputs[1], labels[0], step_state)
            total = total + self.get_unsupervised_weight(step_state) * crossed
            values["unsupervised"] = crossed.detach()
            values["agreement"] = compute_agreement(labels[0][labeled:], labels[1][labeled:])
        return Loss(total, values)

    def observe(self, outputs: list[Tensor], batch: Batch, step_state: StepState) -> None:
        """Called before the losses of a step, with both networks' logits on all patches (labeled ones first)."""

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """The loss of network ``which`` (0 or 1) on the labeled patches."""
        raise NotImplementedError

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """The loss of network ``which`` on all patches, with the ``labels`` of the other network."""
        raise NotImplementedError


class WeightedNetworks(TwoNetworks):
    """Two networks, each with class weights that follow the distribution of its own labels.

    The supervised loss is weighted cross-entropy + weighted foreground Dice, and the cross loss weighted cross-entropy.
    The initial class weights are those of the labeled voxels.
    """

    _DECAY = 0.99

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(2, self.channels))
        self._current = self.weights

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        self.weights.copy_(self.compute_class_weights(torch.tensor(fingerprint.voxels, dtype=torch.float)))

    def compute_class_weights(self, voxels: Tensor) -> Tensor:
        """The class weights (channel,) for the number of voxels of each class (channel,)."""
        raise NotImplementedError

    def select_counted_logits(self, logits: Tensor, labeled: int) -> Tensor:
        """The part of a network's logits (batch, ...) whose labels are counted; the first ``labeled`` are labeled."""
        return logits

    def observe(self, outputs: list[Tensor], batch: Batch, step_state: StepState) -> None:
        """See ``TwoNetworks.observe``."""
        if batch.unlabeled is not None:
            for which, logits in enumerate(outputs):
                labels = self.select_counted_logits(logits, len(batch.volumes)).argmax(dim=1)
                self.update_weights(which, count_voxels(labels, self.channels))
        self._current = self.weights.clone()

    def update_weights(self, which: int, voxels: Tensor) -> None:
        """Update the class weights of network ``which`` with the ``voxels`` (channel,) of each class in its labels."""
        update_average(self.weights[which], self.compute_class_weights(voxels), self._DECAY)

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """See ``TwoNetworks.compute_supervised_loss``."""
        return weighted_loss(logits, batch.labels, self._current[which])

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """See ``TwoNetworks.compute_cross_supervision_loss``."""
        return weighted_cross_entropy(logits, labels, self._current[which])
