"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023).

A box of a labeled patch is pasted into an unlabeled one and vice versa. The student learns the mixtures with the
mixture of true labels and the teacher's labels: L = Σ over both mixtures of L_seg on the labeled region + a L_seg on
the pseudo-labeled region, with a = 1/2 and no ramp. Before this stage, the network learns from labeled patches pasted
into each other. The teacher is a running mean (.99) from the beginning of the second stage.

L_seg is (Dice + cross-entropy) / 2 of the region or, with ``class_balance``, the run's (``losses.supervised_loss``).

Deviations: the first stage takes at most half of a short run (``copy_paste``); the second stage starts from the
averaged or current weights, not from those with the best validation score; the box may touch every border; the largest
components of pseudo-labels are not selected by default (``largest_part``), which is slow for a dozen organs and harms
paired ones. Cost: 0.33 times CPS (0.25 in pretraining), because a step with 2 + 2 patches trains on two mixtures, half
of the patches of other methods.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .base import Batch, Loss, StepState
from .copy_paste import CopyPaste
from .losses import compute_agreement


class BCP(CopyPaste):
    """One student, which learns mixtures, and an EMA teacher."""

    name: ClassVar[str] = "bcp"

    def list_self_training_losses(self) -> tuple[str, ...]:
        """See ``CopyPaste.list_self_training_losses``."""
        return ("mixed",)

    def compute_self_training_loss(
        self, loss_name: str, batch: Batch, unlabeled: Tensor, step_state: StepState
    ) -> Loss:
        """See ``CopyPaste.compute_self_training_loss``."""
        pseudo = self.compute_pseudo_labels(unlabeled)
        pair = self.make_mixtures(
            (batch.volumes, batch.labels), (unlabeled, pseudo), self.draw_box_mask(unlabeled, step_state)
        )
        loss, logits = self.compute_mixture_losses(self.network, pair, step_state)
        half = len(logits) // 2
        inside = ~pair[0].mask.expand_as(pair[0].labels)
        agrees = compute_agreement(logits[:half].detach().argmax(dim=1)[inside], pair[0].labels[inside])
        return Loss(loss, {"supervised": loss.detach(), "agreement": agrees})
