"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks, each taught by the other's labels.

L = Σ_m L_seg(z_m, y) + λ Σ_m L_seg(z_m, argmax z_other). The paper's cross term is cross-entropy alone; ours is the
loss of the labels, (Dice + cross-entropy) / 2. Cost 1: the measure of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .base import Batch, ScoredNetwork, StepState, option, pseudo_label_loss, whole_label_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class CPSOptions:
    """Which networks answer."""

    answer: Literal["both", "first"] = option("both", "both: the mean of the two networks' logits, as the tables have")


class CrossPseudoSupervision(TwoNetworks):
    """Both learn from the labels and, on all patches, from the other's argmax."""

    name: ClassVar[str] = "cps"
    Options: ClassVar[type[CPSOptions]] = CPSOptions
    own: CPSOptions
    needs_full_labels: ClassVar[bool] = False

    def answering(self) -> ScoredNetwork:
        return super().answering() if self.own.answer == "both" else self.network

    def supervised(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        return whole_label_loss(logits, batch, self.options, step_state)

    def crossed(self, which: int, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        return pseudo_label_loss(logits, labels, self.options)
