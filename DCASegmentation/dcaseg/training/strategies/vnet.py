"""A plain V-Net that learns from labeled patches only.

With the labeled part of a training set, it is the baseline of Table 3. With all cases and their labels, it is the fully
supervised row of Tables 1 and 2 (``TrainingSet.to_fully_labeled``).
"""

from __future__ import annotations

from typing import ClassVar

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet, whole_label_loss


class VNet(Strategy):
    """A V-Net that does not use unlabeled patches."""

    name: ClassVar[str] = "vnet"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups)

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """See ``Strategy.weight``."""
        return 0.0

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        loss = whole_label_loss(self.network(batch.volumes), batch, self.options, step_state)
        return Loss(loss, {"supervised": loss.detach()})
