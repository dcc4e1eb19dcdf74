"""Basak et al.: class imbalance in semi-supervised segmentation (Basak, Ghosal and Sarkar, MICCAI 2022).

A mean teacher. On labeled voxels, three indicators of each class (entropy, variance, confidence) are fused with the
Gompertz function into a class-wise confidence CC. The unsupervised loss samples a voxel of class k with probability r_k
= ((1 - CC_k) / max (1 - CC))^2.5 and weights it by (max p)^1.5: L = ce + Dice + λ mean_v mask x ce(z, argmax teacher).
With ``class_balance``, twice the run's loss (``losses.supervised_loss``) replaces ce + Dice on labels.

The authors have not published code. ``row``: DHC's port. Its indicators are E_k = mean p_k Σ p log p, S_k = mean p_k
and V_k = mean(max p - p_k) over the voxels of class k, each followed by a softmax over classes. G = 1 - exp(-exp(-2R)),
of which the twelve smallest values count. CC = (1 - mean R) Σ G, divided by its maximum, with a running mean (.99) from
0. The student's class determines a voxel's rate, and the teacher's decay grows with the epochs. A softmax over a dozen
classes hardly distinguishes them, so this is close to a plain mean teacher. The port also reads the confidences of one
patch with the label mask of another; ours does not. ``published``: our reading of the paper. Indicators in 0 to 1 (1 -
entropy / log C, mean probability, 1 - variance) pass through the same function; CC starts with its first value; the
pseudo-label determines the rate; the teacher's decay grows with the steps. Cost: 0.6 times CPS.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.network import DCANet
from ...option_fields import option
from ..distributed import sum_over_processes
from ..ema import compute_warmup_decay, update_teacher
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet
from .class_statistics import count_voxels
from .losses import compute_agreement, sample_mask, supervised_loss, unweighted_loss, voxel_cross_entropy

_DECAY = 0.99


@dataclass(frozen=True)
class BasakOptions:
    """Options of Basak et al."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port; published: our reading of the paper")
    rate_exponent: float = option(2.5, "exponent of the sampling rate of classes with low confidence", minimum=0)
    voxel_exponent: float = option(1.5, "exponent of a voxel's confidence in its weight", minimum=0)


def fuse_confidence(indicators: Tensor, row: bool) -> Tensor:
    """The class-wise confidence (channel,), in 0 to 1, from ``indicators`` (3, channel); higher is more confident."""
    if row:
        ranks = indicators.softmax(dim=1)
        gompertz = 1 - (-(-2 * ranks).exp()).exp()
        least = gompertz.argsort(dim=1)[:, :12]
        counts = torch.zeros_like(gompertz, dtype=torch.bool).scatter_(1, least, True)
        gompertz = torch.where(counts, gompertz, 1 - math.exp(-1))
        ranks = torch.where(counts, ranks, 0)
        fused = (1 - ranks.mean(dim=0)) * gompertz.sum(dim=0)
        return fused / fused.max().clamp(min=1e-12)
    # Fuzzy ranks decrease from 1 - 1/e to almost 0 as an indicator increases, so a confident class has a low sum.
    gompertz = 1 - (-(-2 * indicators).exp()).exp()
    low, high = 1 - math.exp(-math.exp(-2)), 1 - math.exp(-1)
    doubt = (gompertz.mean(dim=0) - low) / (high - low) * (1 - indicators.mean(dim=0))
    return 1 - doubt.clamp(0, 1)


class Basak(Strategy):
    """A mean teacher whose loss samples more voxels of classes with low confidence."""

    name: ClassVar[str] = "basak"
    Options: ClassVar[type[BasakOptions]] = BasakOptions
    own: BasakOptions
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups)
        self.teacher: DCANet = copy.deepcopy(self.network).requires_grad_(False)
        channels = self.network.out_channels
        self.sums: Tensor
        self.voxels: Tensor
        self.confidence: Tensor
        self.register_buffer("sums", torch.zeros(3, channels))
        self.register_buffer("voxels", torch.zeros(channels))
        # -1 means not known yet; DHC's port starts at 0.
        self.register_buffer(
            "confidence", torch.full((channels,), 0.0 if self.strategy_options.variant == "row" else -1.0)
        )

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled", "unlabelled") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "labelled":
            logits = self.network(batch.volumes).float()
            self._observe(logits.detach().softmax(dim=1), batch.labels)
            loss = supervised_loss(logits, batch.labels, self.options, step_state, unweighted_loss, scale=2)
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabeled is not None
        logits = self.network(batch.unlabeled).float()
        with torch.no_grad():
            labels = self.teacher(batch.unlabeled).argmax(dim=1)
            confidence, own = logits.softmax(dim=1).max(dim=1)
            by = own if self.strategy_options.variant == "row" else labels
            mask = sample_mask(by, self.compute_sampling_rates(), self.make_generator(step_state))
        loss = (voxel_cross_entropy(logits, labels) * confidence**self.strategy_options.voxel_exponent * mask).mean()
        values = {
            "unsupervised": loss.detach(),
            "agreement": compute_agreement(own, labels),
            "certain": mask.float().mean(),
        }
        return Loss(self.get_unsupervised_weight(step_state) * loss, values)

    def compute_sampling_rates(self) -> Tensor:
        """The sampling probability of the voxels of each class (channel,)."""
        doubt = 1 - self.confidence.clamp(min=0)
        return (doubt / doubt.max().clamp(min=1e-8)) ** self.strategy_options.rate_exponent

    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        row = self.strategy_options.variant == "row"
        age = step_state.step // self.epoch_steps - 1 if row else step_state.step
        update_teacher(self.teacher, self.network, compute_warmup_decay(age, _DECAY))
        if (step_state.step + 1) % self.epoch_steps:
            return
        fused = fuse_confidence(self.sums / self.voxels.clamp(min=1), row)
        after = torch.where(self.confidence < 0, fused, _DECAY * self.confidence + (1 - _DECAY) * fused)
        self.confidence.copy_(torch.where(self.voxels > 0, after, self.confidence))
        self.sums.zero_()
        self.voxels.zero_()

    @torch.no_grad()
    def _observe(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add the indicators of each labeled voxel to the sums of its class."""
        of_truth = probabilities.gather(1, labels[:, None])[:, 0]
        negative_entropy = (probabilities * probabilities.clamp(min=1e-12).log()).sum(dim=1)
        spread = probabilities.amax(dim=1) - of_truth
        if self.strategy_options.variant == "row":
            indicators = [of_truth * negative_entropy, of_truth, spread]
        else:
            indicators = [1 + negative_entropy / math.log(probabilities.shape[1]), of_truth, 1 - spread]
        truth = labels.flatten()
        for sums, values in zip(self.sums, indicators, strict=True):
            sums.add_(sum_over_processes(torch.zeros_like(sums).scatter_add_(0, truth, values.flatten())))
        self.voxels.add_(count_voxels(labels, len(self.voxels)))
