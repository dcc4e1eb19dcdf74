"""A plain V-Net on labelled patches alone.

On the labelled part of a cohort it is the baseline of Table 3, on the whole of it with all labels the fully supervised
row of Tables 1 and 2 (``TrainingSet.fully_labelled``).
"""

from __future__ import annotations

from typing import ClassVar

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, plain_vnet, whole_label_loss


class VNet(Strategy):
    """Unlabelled patches are not looked at."""

    name: ClassVar[str] = "vnet"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups)

    def weight(self, step_state: StepState) -> float:
        return 0.0

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        loss = whole_label_loss(self.network(batch.volumes), batch, self.options, step_state)
        return Loss(loss, {"supervised": loss.detach()})
