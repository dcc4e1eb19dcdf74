"""FixMatch for voxels (Sohn et al., NeurIPS 2020): the base of the published Adsh, CReST and SimiS.

One network. On unlabeled patches, the prediction for the patch is the label where it is confident enough, and the
prediction for a strong view of the patch learns from it: L = L_seg(z, y) + λ mean_v 1[confident] ce(z_strong, argmax
p_weak). Strong views change intensities only. Cost: 0.6 times CPS (labeled patches 6F, weak pass 2F, strong pass 6F,
compared with 24F, where F is the cost of a forward pass of one patch).

CReST and SimiS add pseudo-labeled cases to the labeled ones: unlabeled cases in which the most confident voxels of each
class have a label, and all others are ignored.
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
from .base import Batch, Loss, Pool, StepState, Strategy, build_vnet, whole_label_loss
from .losses import compute_agreement, voxel_loss
from .perturbation import augment_strongly

CONFIDENCE_THRESHOLD = 0.95
"""FixMatch's threshold on the largest probability."""


class FixMatch(Strategy):
    """FixMatch. A subclass chooses which voxels' pseudo-labels are accepted, or adds pseudo-labeled cases."""

    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups)
        self.channels = self.network.out_channels

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled", "unlabelled") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "labelled":
            loss = whole_label_loss(self.network(batch.volumes), batch, self.options, step_state)
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabeled is not None
        with torch.no_grad():
            weak = self.align_distribution(self.network(batch.unlabeled).float().softmax(dim=1), step_state)
            confidence, labels = weak.max(dim=1)
            mask = self.compute_confidence_mask(confidence, labels)
        logits = self.network(augment_strongly(batch.unlabeled, self.make_generator(step_state)))
        loss = voxel_loss(logits, labels, mask=mask)
        values = {"unsupervised": loss.detach(), "agreement": compute_agreement(logits.detach().argmax(dim=1), labels)}
        return Loss(self.get_unsupervised_weight(step_state) * loss, {**values, "certain": mask.float().mean()})

    def align_distribution(self, probabilities: Tensor, step_state: StepState) -> Tensor:
        """Adjust the distribution of the probabilities (batch, channel, depth, height, width) for pseudo-labels."""
        return probabilities

    def compute_confidence_mask(self, confidence: Tensor, labels: Tensor) -> Tensor:
        """Which voxels' pseudo-labels are used: booleans (batch, depth, height, width)."""
        return confidence >= CONFIDENCE_THRESHOLD


def select_most_confident(
    predictions: Sequence[tuple[np.ndarray, np.ndarray]], counts: Sequence[int]
) -> list[np.ndarray]:
    """The most confident voxels of each class, as a mask (depth, height, width) for each case.

    ``counts`` is the number of voxels of each class in all cases together. ``predictions`` are labels and confidences
    (uint16) of each case, (depth, height, width). Of voxels with equal confidence, the first are taken.
    """
    masks = [np.zeros(labels.shape, bool) for labels, _ in predictions]
    for label, count in enumerate(counts):
        indices = [np.flatnonzero(labels.ravel() == label) for labels, _ in predictions]
        confidences = [confidence.ravel()[at] for at, (_, confidence) in zip(indices, predictions, strict=True)]
        histogram = sum((np.bincount(each, minlength=65536) for each in confidences), np.zeros(65536, np.int64))
        n_above = np.cumsum(histogram[::-1])[::-1]
        count = min(count, int(n_above[0]))
        if count <= 0:
            continue
        threshold = int(np.flatnonzero(n_above >= count)[-1])
        remaining = count - (int(n_above[threshold + 1]) if threshold < 65535 else 0)
        for at, confidence, mask in zip(indices, confidences, masks, strict=True):
            ties = at[confidence == threshold][:remaining]
            remaining -= len(ties)
            mask.ravel()[at[confidence > threshold]] = True
            mask.ravel()[ties] = True
    return masks


def make_pseudo_labeled_cases(pool: Pool, counts_of: Sequence[float], of_predicted: bool) -> list[Case]:
    """Pseudo-label the unlabeled cases: the most confident voxels of each class have labels, all others are ignored.

    ``counts_of`` holds, for each class, the fraction of its predicted voxels to keep or, if not ``of_predicted``, the
    number of voxels. Cases in which no voxel is kept are left out.
    """
    predictions = [pool.predict(case) for case in pool.unlabeled]
    counts = [int(number) for number in counts_of]
    if of_predicted:
        n_channels = len(counts_of)
        predicted = sum(
            (np.bincount(labels.ravel(), minlength=n_channels) for labels, _ in predictions), np.zeros(n_channels, int)
        )
        counts = [int(share * number) for share, number in zip(counts_of, predicted, strict=True)]
    masks = select_most_confident(predictions, counts)
    return [
        Case(case.name, case.hu, np.where(mask, labels, 0).astype(np.uint8), (), case.spacing, ignored=~mask)
        for case, (labels, _), mask in zip(pool.unlabeled, predictions, masks, strict=True)
        if mask.any()
    ]
