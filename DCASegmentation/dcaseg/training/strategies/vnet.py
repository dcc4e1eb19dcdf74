"""A plain V-Net on labelled patches alone.

On the labelled part of a cohort it is the baseline of Table 3, on the whole of it with all labels the fully supervised
row of Tables 1 and 2 (``Cohort.fully_labelled``).
"""

from __future__ import annotations

from typing import ClassVar

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, Moment, Strategy, plain_vnet, whole_label_loss


class VNet(Strategy):
    """Unlabelled patches are not looked at."""

    name: ClassVar[str] = "vnet"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups)

    def weight(self, moment: Moment) -> float:
        return 0.0

    def parts(self, moment: Moment, batch: Batch) -> tuple[str, ...]:
        return ("labelled",)

    def forward(self, part: str, batch: Batch, moment: Moment) -> Loss:
        loss = whole_label_loss(self.network(batch.volumes), batch, self.options, moment)
        return Loss(loss, {"supervised": loss.detach()})
