"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023).

A box of a labelled patch is pasted into an unlabelled one and the other way round, and the student learns the
mixtures with the mixture of true and teacher's labels: L = Σ over both mixtures of L_seg on the labelled region + a
L_seg on the pseudo-labelled one, a = 1/2, no ramp. Before that, the network learns from labelled patches pasted into
each other. The teacher is a running mean (.99) from the beginning of the second stage.

What deviates: the second stage starts from the averaged or present weights, not from those that validated best; the
box may touch every border; a pseudo-label's largest parts are not kept (``largest_part``), which is slow for a dozen
organs and harms paired ones. Cost .33 CPS (.12 while pretraining): a step of 2 + 2 patches trains on two mixtures,
half the patches that others see.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .base import Batch, Loss, StepState
from .copy_paste import CopyPaste
from .losses import agreement


class BCP(CopyPaste):
    """One student on mixtures, an EMA teacher."""

    name: ClassVar[str] = "bcp"

    def self_training_parts(self) -> tuple[str, ...]:
        return ("mixed",)

    def self_training(self, part: str, batch: Batch, unlabelled: Tensor, step_state: StepState) -> Loss:
        pseudo = self.pseudo_labels(unlabelled)
        pair = self.both_ways((batch.volumes, batch.labels), (unlabelled, pseudo), self.box(unlabelled, step_state))
        loss, logits = self.both_losses(self.network, pair)
        half = len(logits) // 2
        inside = ~pair[0].mask.expand_as(pair[0].labels)
        agrees = agreement(logits[:half].detach().argmax(dim=1)[inside], pair[0].labels[inside])
        return Loss(loss, {"supervised": loss.detach(), "agreement": agrees})
