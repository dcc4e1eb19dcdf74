"""Three experts that all learn every organ, averaged: DCA without its division of organs (row 2 of Table 3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.network import DCANet, DCAOutput
from ...method.vnet import initialize_kaiming
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, whole_label_loss


class AveragedExperts(DCANet):
    """The encoder and three expert decoders of DCA; the result is the mean of their logits."""

    def forward(self, volume: Tensor) -> Tensor:
        return torch.stack([expert.logits for expert in self.decode_experts(self.encoder(volume))]).mean(dim=0)

    def forward_all(self, volume: Tensor, attention_levels: object = ()) -> DCAOutput:
        logits = tuple(expert.logits for expert in self.decode_experts(self.encoder(volume)))
        return DCAOutput(torch.stack(logits).mean(dim=0), logits, {})


class PlainExperts(Strategy):
    """Nobody's paper states this row; it is our reading of "+ 3 experts" without log-gap analysis."""

    name: ClassVar[str] = "plain_experts"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = AveragedExperts(
            owners=groups.owners,
            n_filters=options.n_filters,
            norm=options.norm,
            n_stages=options.n_stages,
            dilations=options.dilations,
            aggregation=False,
            upsampling=options.upsampling,
        )
        if options.initialization == "kaiming":
            initialize_kaiming(self.network)

    def weight(self, step_state: StepState) -> float:
        return 0.0

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        decoded = self.network.decode_experts(self.network.encoder(batch.volumes))
        losses = [whole_label_loss(expert.logits, batch, self.options, step_state) for expert in decoded]
        total = torch.stack(losses).sum()
        return Loss(total, {"supervised": total.detach() / len(losses)})
