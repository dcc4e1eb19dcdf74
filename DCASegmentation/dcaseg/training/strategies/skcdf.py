"""SKCDF: semantic knowledge complementarity and decoupling (Zhang et al., CVPR 2025).

The encoder learns from all patches; decoder l from labelled and decoder u, the answer, from unlabelled ones. At the
bottleneck attention over channels lets labelled patches attend to unlabelled ones and the other way round, without a
gradient into the attended; unlabelled patches alone, and the answer, attend to themselves. Each decoder has a second,
balanced head, which learns from a sample of the voxels: L_sup = L(l(L), y) + L(balanced l(L), y on M), M ~
Bernoulli(n_min / n_y); pseudo-labels are l's argmax on unlabelled patches, of both heads; L_un = L(u(U), label) +
L(balanced u(U), label on M_u), M_u ~ Bernoulli(1 - t/T (1 - n_min / n_label)); L = cross-entropy + 1 - foreground
Dice. After each step l's head follows its balanced head, u follows l, u's head its balanced head (EMA .99 of weights
that also learn).

What deviates: M leaves voxels out of the loss (the published code multiplies logits and labels by it, so that those
voxels become false foreground in Dice); counts of all labelled cases, not of four; unlabelled patches pass the first
half without a gradient, which changes nothing. Cost .6 CPS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.experts import PAPER_DILATIONS, VNET_N_STAGES, ExpertDecoder
from ...method.log_gap import Partition
from ...method.network import DCANet
from ..options import TrainingOptions
from .base import Batch, Facts, Loss, StepState, Strategy, option
from .class_statistics import balance_ratio
from .losses import agreement, foreground_dice, sampled, voxel_loss

_DROPOUT = 0.1


class ChannelAttention(nn.Module):
    """Attention whose tokens are channels, on features (batch, channel, d, h, w) of a fixed size.

    Each channel's windows of ``kernel`` voxels are embedded by themselves, as many numbers as voxels. Queries, keys and
    values are twice the channels; the map of weights is normed before its softmax.
    """

    def __init__(self, channels: int, size: Sequence[int], kernel: Sequence[int]) -> None:
        super().__init__()
        self._size = tuple(size)
        self._windows = tuple(side // step for side, step in zip(size, kernel, strict=True))
        self._kernel = tuple(kernel)
        window: Any = tuple(kernel)
        self.embed = nn.Conv3d(1, math.prod(kernel), kernel_size=window, stride=window)
        self.before, self.after = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.key, self.value = (nn.Linear(channels, 2 * channels) for _ in range(3))
        self.dropout = nn.Dropout(_DROPOUT)
        self.merge = nn.Linear(2 * channels, channels)
        self.mix = nn.Sequential(nn.Conv3d(channels, channels, kernel_size=1), nn.GELU())

    def forward(self, features: Tensor, others: Tensor | None = None) -> Tensor:
        """Features that attend to all of ``others`` together, or each to itself with two heads."""
        tokens = self._tokens(features)
        normed = self.before(tokens)
        query = self.query(normed).transpose(1, 2)
        if others is None:
            key, value = self.key(normed).transpose(1, 2), self.value(normed).transpose(1, 2)
            heads = [
                self._attend(*three) for three in zip(*(x.chunk(2, dim=1) for x in (query, key, value)), strict=True)
            ]
            found = torch.cat(heads, dim=1)
        else:
            attended = self.before(self._tokens(others))
            # One set of keys: the channels of all patches.
            key, value = (
                layer(attended).transpose(1, 2).flatten(0, 1)[None].expand(len(features), -1, -1)
                for layer in (self.key, self.value)
            )
            found = self._attend(query, key, value)
        tokens = self.after(tokens + self.merge(self.dropout(found.transpose(1, 2))))
        mixed: Tensor = self.mix(self._volume(tokens))
        return mixed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(batch, tokens, positions) of queries, by keys and values (batch, other tokens, positions)."""
        weights = (query / math.sqrt(query.shape[2]) @ key.transpose(1, 2)).float()
        weights = functional.instance_norm(weights[:, None])[:, 0].softmax(dim=2)
        return weights.to(value.dtype) @ value

    def _tokens(self, features: Tensor) -> Tensor:
        """(batch, positions, channel): every channel embedded alone."""
        batch, channels = features.shape[:2]
        if tuple(features.shape[2:]) != self._size:
            raise ValueError(f"the attention is made for features of {self._size}, not {tuple(features.shape[2:])}")
        embedded = self.embed(features.reshape(batch * channels, 1, *self._size))
        return embedded.reshape(batch, channels, -1).transpose(1, 2)

    def _volume(self, tokens: Tensor) -> Tensor:
        """Back to (batch, channel, d, h, w): the numbers of a window become its voxels."""
        batch, _, channels = tokens.shape
        grid = tokens.transpose(1, 2).reshape(batch, channels, *self._kernel, *self._windows)
        return grid.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels, *self._size)


class AttendingVNet(DCANet):
    """The V-Net of all rows with attention over channels at the bottleneck: of windows, then of the whole."""

    def __init__(self, patch: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        size = [side // self.divisor for side in patch]
        channels = 16 * options["n_filters"]
        self.attention = nn.ModuleList(
            ChannelAttention(channels, size, kernel) for kernel in ([2 if side % 2 == 0 else 1 for side in size], size)
        )

    def forward(self, volume: Tensor) -> Tensor:
        decoded = self.experts[0](self.attended(self.encoder(volume)))
        logits: Tensor = decoded.logits
        return logits

    def attended(self, features: list[Tensor], others: Tensor | None = None) -> list[Tensor]:
        """Features of all levels with the deepest replaced by what it attends to: ``others``, or itself."""
        deepest = features[-1]
        for block in self.attention:
            # The second block attends to the same others: they are as they were.
            deepest = block(deepest, others)
        return [*features[:-1], deepest]


@dataclass(frozen=True)
class SKCDFOptions:
    """How fast followers follow."""

    decay: float = option(0.99, "share of its own weights that a following head or decoder keeps in a step")


class SKCDF(Strategy):
    """Two decoders with two heads each; ``network`` is the encoder with decoder u."""

    name: ClassVar[str] = "skcdf"
    Options: ClassVar[type[SKCDFOptions]] = SKCDFOptions
    own: SKCDFOptions
    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True
    needs_every_organ: ClassVar[bool] = True
    network: AttendingVNet

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        labels = sorted(label for owned in groups.owners for label in owned)
        self.network = AttendingVNet(
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
        self.ratio: Tensor
        self.register_buffer("ratio", torch.ones(channels))
        self._pseudo: list[Tensor] = []

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        self.ratio.copy_(balance_ratio(torch.tensor(facts.voxels, dtype=torch.float)))

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled", "unlabelled") if batch.unlabelled is not None else ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        generator = self.random(step_state, 0 if part == "labelled" else 1)
        if part == "labelled":
            features = self.network.encoder(batch.volumes)
            others = None
            if batch.unlabelled is not None:
                others = self._look_at_unlabelled(batch.unlabelled, features[-1])
            answers = self._answers(self.labelled, "labelled", self.network.attended(features, others))
            masks = (None, sampled(batch.labels, self.ratio, generator))
            losses = [self._loss(one, batch.labels, mask) for one, mask in zip(answers, masks, strict=True)]
            return Loss(losses[0] + losses[1], {"supervised": losses[0].detach(), "balanced": losses[1].detach()})
        assert batch.unlabelled is not None
        decoder: ExpertDecoder = self.network.experts[0]  # type: ignore[assignment]
        features = self.network.attended(self.network.encoder(batch.unlabelled))
        answers = self._answers(decoder, "unlabelled", features)
        labels, balanced = self._pseudo
        rates = 1 - step_state.step / self.options.steps * (1 - self.ratio)
        masks = (None, sampled(balanced, rates, generator))
        losses = [self._loss(one, target, mask) for one, target, mask in zip(answers, self._pseudo, masks, strict=True)]
        loss = losses[0] + losses[1]
        same = agreement(answers[0].detach().argmax(dim=1), labels)
        return Loss(self.weight(step_state) * loss, {"unsupervised": loss.detach(), "agreement": same})

    @torch.no_grad()
    def on_step_end(self, step_state: StepState) -> None:
        decoder: ExpertDecoder = self.network.experts[0]  # type: ignore[assignment]
        pairs = (
            (self.labelled.head, self.balanced["labelled"]),
            (decoder, self.labelled),
            (self.balanced["unlabelled"], self.balanced["labelled"]),
            (decoder.head, self.balanced["unlabelled"]),
        )
        for follower, leader in pairs:
            for kept, new in zip(follower.parameters(), leader.parameters(), strict=True):
                kept.lerp_(new, 1 - self.own.decay)

    @torch.no_grad()
    def _look_at_unlabelled(self, unlabelled: Tensor, labelled: Tensor) -> Tensor:
        """Pseudo-labels of both heads of decoder l, attending to the labelled features; the unlabelled ones."""
        features = self.network.encoder(unlabelled)
        attended = self.network.attended(features, labelled)
        self._pseudo = [one.argmax(dim=1) for one in self._answers(self.labelled, "labelled", attended)]
        return features[-1]

    def _answers(self, decoder: ExpertDecoder, which: str, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of a decoder's own and of its balanced head."""
        decoded = decoder(features)
        return [decoded.logits.float(), self.balanced[which](decoded.features[-1]).float()]

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        return voxel_loss(logits, labels, mask=mask, over="kept") + 1 + foreground_dice(logits, labels, mask=mask)
