"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks that learn from each other's pseudo-labels.

L = Σ_m L_seg(z_m, y) + λ Σ_m L_seg(z_m, argmax z_other). The paper's cross loss is cross-entropy only; ours is that of
the labels, (Dice + cross-entropy) / 2. Its cost is the unit in which the cost of the other methods is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...option_fields import option
from .base import Batch, ScoredNetwork, StepState, pseudo_label_loss, whole_label_loss
from .two_networks import TwoNetworks


@dataclass(frozen=True)
class CPSOptions:
    """Options of CPS."""

    answer: Literal["both", "first"] = option("both", "the result: the mean of both networks' logits, or the first's")


class CrossPseudoSupervision(TwoNetworks):
    """Both networks learn from the labels and, on all patches, from the other's argmax."""

    name: ClassVar[str] = "cps"
    Options: ClassVar[type[CPSOptions]] = CPSOptions
    own: CPSOptions
    needs_full_labels: ClassVar[bool] = False

    def get_validated_network(self) -> ScoredNetwork:
        """See ``Strategy.get_validated_network``."""
        return super().get_validated_network() if self.strategy_options.answer == "both" else self.network

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """See ``TwoNetworks.compute_supervised_loss``."""
        return whole_label_loss(logits, batch, self.options, step_state)

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """See ``TwoNetworks.compute_cross_supervision_loss``."""
        return pseudo_label_loss(logits, labels, self.options)
