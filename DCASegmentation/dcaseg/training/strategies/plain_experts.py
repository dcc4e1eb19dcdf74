"""Three averaged experts that all learn every organ: DCA without the division of organs (row 2 of Table 3)."""

from __future__ import annotations

from typing import ClassVar

import torch

from ...method.log_gap import Partition
from ...method.network import DCANet
from ...method.vnet import initialize_kaiming
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, whole_label_loss


class PlainExperts(Strategy):
    """Our reading of "+ 3 experts" without log-gap analysis; the paper does not specify this row further."""

    name: ClassVar[str] = "plain_experts"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = DCANet(
            owners=groups.owners,
            n_filters=options.n_filters,
            norm=options.norm,
            n_stages=options.n_stages,
            dilations=options.dilations,
            aggregation=False,
            stitching="average",
            upsampling=options.upsampling,
        )
        if options.initialization == "kaiming":
            initialize_kaiming(self.network)

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """See ``Strategy.weight``."""
        return 0.0

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        decoded = self.network.decode_experts(self.network.encoder(batch.volumes))
        losses = [whole_label_loss(expert.logits, batch, self.options, step_state) for expert in decoded]
        total = torch.stack(losses).sum()
        return Loss(total, {"supervised": total.detach() / len(losses)})
