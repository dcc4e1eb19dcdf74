"""SKCDF: semantic knowledge complementarity and decoupling (Zhang et al., CVPR 2025).

The encoder learns from all patches, decoder l from labeled ones, and decoder u, whose output is the result, from
unlabeled ones. At the bottleneck, labeled patches attend to unlabeled ones and vice versa (attention over channels,
without a gradient to the attended patches); when unlabeled patches train u, and in inference, patches attend to
themselves. Each decoder has a second, balanced head, which learns from a sample of the voxels. L_sup = L(l(L), y) +
L(balanced l(L), y on M), M ~ Bernoulli(n_min / n_y). Pseudo-labels are the argmax of both heads of l on unlabeled
patches. L_un = L(u(U), label) + L(balanced u(U), label on M_u), M_u ~ Bernoulli(1 - t/T (1 - n_min / n_label)). L =
cross-entropy + 1 - foreground Dice; with ``class_balance``, twice the run's loss (``losses.supervised_loss``) replaces
L(l(L), y), which is the only one on labels that no sample balances. After each step, l's head follows its balanced
head, u follows l, and u's head follows its balanced head (EMA of weights that also learn, .99).

Deviations: M excludes voxels from the loss (the published code multiplies logits and labels by it, so these voxels
become false foreground in Dice); counts are from all labeled cases, not from four; unlabeled patches pass the first
half without a gradient, which does not change the result; with AdamW, heads follow their balanced heads more slowly
(``base.choose_ema_decay``), or they would answer as those, which see hardly any background. Cost: 0.6 times CPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...method.channel_attention import AttendingNet
from ...method.experts import ExpertDecoder
from ...method.log_gap import Partition
from ...method.variants import PAPER_DILATIONS, VNET_N_STAGES
from ...method.vnet import initialize_kaiming
from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, DatasetFingerprint, Loss, StepState, Strategy, choose_ema_decay
from .class_statistics import compute_balance_ratio
from .losses import compute_agreement, foreground_dice_loss, sample_mask, supervised_loss, voxel_loss


@dataclass(frozen=True)
class SKCDFOptions:
    """Options of SKCDF."""

    decay: float = option(0.99, "decay of the running mean with which decoder u follows decoder l", minimum=0, below=1)
    head_decay: float | None = option(
        None, "the same for heads that follow others; automatic: 0.99 with SGD, 0.999 with AdamW", minimum=0, below=1
    )


class SKCDF(Strategy):
    """Two decoders with two heads each. ``network`` is the encoder with decoder u."""

    name: ClassVar[str] = "skcdf"
    Options: ClassVar[type[SKCDFOptions]] = SKCDFOptions
    own: SKCDFOptions
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True
    needs_every_organ: ClassVar[bool] = True
    network: AttendingNet

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        labels = sorted(label for owned in groups.owners for label in owned)
        self.network = AttendingNet(
            options.patch, owners=[labels], n_filters=options.n_filters, norm=options.norm,
            n_stages=[VNET_N_STAGES], dilations=[PAPER_DILATIONS[1]], aggregation=False, stitching=options.stitching,
            upsampling=options.upsampling,
        )  # fmt: skip
        channels = self.network.out_channels
        self.labelled = ExpertDecoder(
            options.n_filters, channels, options.norm, VNET_N_STAGES, PAPER_DILATIONS[1], upsampling=options.upsampling
        )
        self.balanced = nn.ModuleDict(
            {name: nn.Conv3d(options.n_filters, channels, kernel_size=1) for name in ("labelled", "unlabelled")}
        )
        if options.initialization == "kaiming":
            for part in (self.network.encoder, self.network.experts, self.labelled):
                initialize_kaiming(part)
        self.ratio: Tensor
        self.register_buffer("ratio", torch.ones(channels))
        self._pseudo: list[Tensor] = []
        self._head_decay = choose_ema_decay(self.strategy_options.head_decay, options)

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        self.ratio.copy_(compute_balance_ratio(torch.tensor(fingerprint.voxels, dtype=torch.float)))

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled", "unlabelled") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        generator = self.make_generator(step_state, 0 if loss_name == "labelled" else 1)
        if loss_name == "labelled":
            features = self.network.encoder(batch.volumes)
            others = None
            if batch.unlabeled is not None:
                others = self._compute_pseudo_labels(batch.unlabeled, features[-1])
            outputs = self._compute_head_logits(
                self.labelled, "labelled", self.network.apply_attention(features, others)
            )
            plain = supervised_loss(outputs[0], batch.labels, self.options, step_state, self._compute_loss, scale=2)
            # The sample balances the classes, so this head keeps the published loss.
            balanced = self._compute_loss(outputs[1], batch.labels, sample_mask(batch.labels, self.ratio, generator))
            return Loss(plain + balanced, {"supervised": plain.detach(), "balanced": balanced.detach()})
        assert batch.unlabeled is not None
        decoder: ExpertDecoder = self.network.experts[0]  # type: ignore[assignment]
        features = self.network.apply_attention(self.network.encoder(batch.unlabeled))
        outputs = self._compute_head_logits(decoder, "unlabelled", features)
        labels, balanced = self._pseudo
        rates = 1 - step_state.step / self.options.steps * (1 - self.ratio)
        masks = (None, sample_mask(balanced, rates, generator))
        losses = [
            self._compute_loss(logits, target, mask)
            for logits, target, mask in zip(outputs, self._pseudo, masks, strict=True)
        ]
        loss = losses[0] + losses[1]
        same = compute_agreement(outputs[0].detach().argmax(dim=1), labels)
        return Loss(self.get_unsupervised_weight(step_state) * loss, {"unsupervised": loss.detach(), "agreement": same})

    @torch.no_grad()
    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        decoder: ExpertDecoder = self.network.experts[0]  # type: ignore[assignment]
        pairs = (
            (self.labelled.head, self.balanced["labelled"]),
            (decoder, self.labelled),
            (self.balanced["unlabelled"], self.balanced["labelled"]),
            (decoder.head, self.balanced["unlabelled"]),
        )
        for follower, leader in pairs:
            decay = self.strategy_options.decay if leader is self.labelled else self._head_decay
            for average, new in zip(follower.parameters(), leader.parameters(), strict=True):
                average.lerp_(new, 1 - decay)

    @torch.no_grad()
    def _compute_pseudo_labels(self, unlabeled: Tensor, labeled: Tensor) -> Tensor:
        """Compute the pseudo-labels of both heads of decoder l; returns the deepest features of the unlabeled patches.

        The unlabeled patches attend to the features ``labeled`` of the labeled ones.
        """
        features = self.network.encoder(unlabeled)
        attended = self.network.apply_attention(features, labeled)
        self._pseudo = [
            logits.argmax(dim=1) for logits in self._compute_head_logits(self.labelled, "labelled", attended)
        ]
        return features[-1]

    def _compute_head_logits(self, decoder: ExpertDecoder, which: str, features: Sequence[Tensor]) -> list[Tensor]:
        """The logits of a decoder's own head and of its balanced head."""
        decoded = decoder(features)
        return [decoded.logits.float(), self.balanced[which](decoded.features[-1]).float()]

    def _compute_loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        return voxel_loss(logits, labels, mask=mask, over="kept") + 1 + foreground_dice_loss(logits, labels, mask=mask)
