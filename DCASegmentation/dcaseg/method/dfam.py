"""How the experts' features of one level join the stream of the aggregation decoder (Fig. 4 and Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

FusionKind = Literal["dfam", "average", "concat", "none"]


class Fused(NamedTuple):
    """What goes on in the aggregation decoder, and the weights (batch, expert, depth, height, width) that made it."""

    features: Tensor
    attention: Tensor | None


class DFAM(nn.Module):
    """Dynamic Feature Aggregation Module (Fig. 4).

    A 1x1x1 convolution for each expert, concatenation, 3x3x3 convolution, ReLU and 1x1x1 convolution give one value
    per expert and voxel; their softmax weighs the experts' own features (not the unified ones: the paper's equation
    multiplies F_H, F_M and F_T), and the sum is added to the up-sampled stream.
    """

    def __init__(self, channels: int, n_experts: int) -> None:
        super().__init__()
        self.unify = nn.ModuleList(nn.Conv3d(channels, channels, kernel_size=1) for _ in range(n_experts))
        self.mix = nn.Conv3d(channels * n_experts, channels, kernel_size=3, padding=1)
        self.gate = nn.Conv3d(channels, n_experts, kernel_size=1)
        # A gate of zeros weighs the experts alike, so training starts from the plain average.
        for parameter in self.gate.parameters():
            nn.init.zeros_(parameter)

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> Fused:
        unified = torch.cat([unify(features) for unify, features in zip(self.unify, experts, strict=True)], dim=1)
        attention = torch.softmax(self.gate(torch.relu(self.mix(unified))), dim=1)
        fused = stream
        for expert, features in enumerate(experts):
            fused = fused + attention[:, expert : expert + 1] * features
        return Fused(fused, attention)


class AverageFusion(nn.Module):
    """The experts' mean, added to the stream ("average" of Fig. 8)."""

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> Fused:
        mean = torch.stack(list(experts)).mean(dim=0)
        batch, _, *size = stream.shape
        even = stream.new_full((batch, len(experts), *size), 1 / len(experts))
        return Fused(stream + mean, even)


class ConcatFusion(nn.Module):
    """A 1x1x1 convolution over the concatenated experts, added to the stream ("concat" of Fig. 8)."""

    def __init__(self, channels: int, n_experts: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels * n_experts, channels, kernel_size=1)

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> Fused:
        return Fused(stream + self.reduce(torch.cat(list(experts), dim=1)), None)


class NoFusion(nn.Module):
    """The stream alone: an aggregation decoder that does not see the experts (Table 3, "without DFAM")."""

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> Fused:
        return Fused(stream, None)


def fusion(kind: FusionKind, channels: int, n_experts: int) -> nn.Module:
    """The fusion module of ``kind`` for one level. Raises ValueError for another kind."""
    if kind == "dfam":
        return DFAM(channels, n_experts)
    if kind == "average":
        return AverageFusion()
    if kind == "concat":
        return ConcatFusion(channels, n_experts)
    if kind == "none":
        return NoFusion()
    raise ValueError(f"fusion must be 'dfam', 'average', 'concat' or 'none', not {kind!r}")
