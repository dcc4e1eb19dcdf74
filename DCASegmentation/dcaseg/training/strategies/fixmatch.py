"""FixMatch for voxels (Sohn et al., NeurIPS 2020): the base of the published Adsh, CReST and SimiS.

One network. On unlabelled patches the prediction on the patch itself is the label, where it is confident enough, and
the prediction on a strong view of it learns: L = L_seg(z, y) + λ mean_v 1[confident] ce(z_strong, argmax p_weak).
Strong views change intensities only. Cost .6 CPS: labelled patches 6F, weak pass 2F, strong pass 6F, against 24F.

CReST and SimiS add pseudo-labelled cases to the labelled ones: whole unlabelled cases of which the most confident
voxels of each class have a label and all others are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...method.log_gap import Partition
from ..cases import Case
from ..options import TrainingOptions
from .base import Batch, Loss, Pool, StepState, Strategy, plain_vnet, whole_label_loss
from .losses import agreement, region_loss, voxel_loss
from .perturbation import strong_view

CONFIDENT = 0.95
"""FixMatch's threshold on the largest probability."""


class FixMatch(Strategy):
    """A subclass chooses which voxels' pseudo-labels are accepted, or which cases are added."""

    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups)
        self.channels = self.network.out_channels

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled", "unlabelled") if batch.unlabelled is not None else ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        if part == "labelled":
            logits = self.network(batch.volumes)
            if batch.ignored is not None:
                loss = region_loss(logits, batch.labels, ~batch.ignored)
            else:
                loss = whole_label_loss(logits, batch, self.options, step_state)
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabelled is not None
        with torch.no_grad():
            weak = self.aligned(self.network(batch.unlabelled).float().softmax(dim=1), step_state)
            confidence, labels = weak.max(dim=1)
            mask = self.accepted(confidence, labels)
        logits = self.network(strong_view(batch.unlabelled, self.random(step_state)))
        loss = voxel_loss(logits, labels, mask=mask)
        values = {"unsupervised": loss.detach(), "agreement": agreement(logits.detach().argmax(dim=1), labels)}
        return Loss(self.weight(step_state) * loss, {**values, "certain": mask.float().mean()})

    def aligned(self, probabilities: Tensor, step_state: StepState) -> Tensor:
        """The probabilities that pseudo-labels are made of, after any change to their distribution."""
        return probabilities

    def accepted(self, confidence: Tensor, labels: Tensor) -> Tensor:
        """Which voxels' pseudo-labels are learned from, as booleans like ``labels``."""
        return confidence >= CONFIDENT


def most_confident(predictions: Sequence[tuple[np.ndarray, np.ndarray]], counts: Sequence[int]) -> list[np.ndarray]:
    """Of each class, the ``counts`` voxels of all cases together that are most confident, as booleans of each case.

    ``predictions`` are labels and confidences (uint16) of each case. Ties fall to the voxels that come first.
    """
    chosen = [np.zeros(labels.shape, bool) for labels, _ in predictions]
    for label, wanted in enumerate(counts):
        found = [np.flatnonzero(labels.ravel() == label) for labels, _ in predictions]
        confidences = [confidence.ravel()[at] for at, (_, confidence) in zip(found, predictions, strict=True)]
        histogram = sum((np.bincount(one, minlength=65536) for one in confidences), np.zeros(65536, np.int64))
        above = np.cumsum(histogram[::-1])[::-1]
        wanted = min(wanted, int(above[0]))
        if wanted <= 0:
            continue
        border = int(np.flatnonzero(above >= wanted)[-1])
        left = wanted - (int(above[border + 1]) if border < 65535 else 0)
        for at, one, mask in zip(found, confidences, chosen, strict=True):
            ties = at[one == border][:left]
            left -= len(ties)
            mask.ravel()[at[one > border]] = True
            mask.ravel()[ties] = True
    return chosen


def pseudo_labelled(pool: Pool, counts_of: Sequence[float], of_predicted: bool) -> list[Case]:
    """Unlabelled cases as labelled ones: of each class its most confident voxels, all others ignored.

    ``counts_of`` holds for each class the share of its predicted voxels to keep, or if not ``of_predicted`` a number of
    voxels. Cases in which no voxel is kept are left out.
    """
    predictions = [pool.predict(case) for case in pool.unlabelled]
    counts = [int(number) for number in counts_of]
    if of_predicted:
        n_channels = len(counts_of)
        predicted = sum(
            (np.bincount(labels.ravel(), minlength=n_channels) for labels, _ in predictions), np.zeros(n_channels, int)
        )
        counts = [int(share * number) for share, number in zip(counts_of, predicted, strict=True)]
    kept = most_confident(predictions, counts)
    return [
        Case(case.name, case.hu, np.where(mask, labels, 0).astype(np.uint8), (), case.spacing, ignored=~mask)
        for case, (labels, _), mask in zip(pool.unlabelled, predictions, kept, strict=True)
        if mask.any()
    ]
