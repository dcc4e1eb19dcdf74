"""Fusion modules: they add the experts' features of one level to the aggregation decoder (Fig. 4 and Fig. 8).

Every module's ``forward`` takes the features of each expert and the decoder's own upsampled features, all of shape
(batch, channel, depth, height, width), and returns a ``FusionOutput``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .variants import FusionKind


class FusionOutput(NamedTuple):
    """Result of a fusion module.

    ``features`` (batch, channel, depth, height, width) are the input of the level's convolution block. ``attention``
    (batch, expert, depth, height, width) holds the experts' weights, which sum to one; it is None for a fusion that
    does not weight the experts.
    """

    features: Tensor
    attention: Tensor | None


class DFAM(nn.Module):
    """Dynamic Feature Aggregation Module (Fig. 4).

    Each expert's features pass through a 1x1x1 convolution ("unify"). The results are concatenated and pass through a
    3x3x3 convolution, ReLU and a 1x1x1 convolution, which gives one value per expert and voxel. The softmax of these
    values weights the experts' original features (not the unified ones: the paper's equation multiplies F_H, F_M and
    F_T), and the weighted sum is added to the upsampled features.
    """

    def __init__(self, channels: int, n_experts: int) -> None:
        super().__init__()
        self.unify = nn.ModuleList(nn.Conv3d(channels, channels, kernel_size=1) for _ in range(n_experts))
        self.mix = nn.Conv3d(channels * n_experts, channels, kernel_size=3, padding=1)
        self.gate = nn.Conv3d(channels, n_experts, kernel_size=1)
        # A zero gate gives all experts the same weight, so training starts from the plain average.
        for parameter in self.gate.parameters():
            nn.init.zeros_(parameter)

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> FusionOutput:
        """Add the attention-weighted sum of the experts' features to ``stream`` (equations of Fig. 4).

        ``experts`` holds one tensor (batch, channel, depth, height, width) per expert; ``stream`` has the same shape.
        """
        unified = torch.cat([unify(features) for unify, features in zip(self.unify, experts, strict=True)], dim=1)
        attention = torch.softmax(self.gate(torch.relu(self.mix(unified))), dim=1)
        fused = stream
        for expert, features in enumerate(experts):
            fused = fused + attention[:, expert : expert + 1] * features
        return FusionOutput(fused, attention)


class AverageFusion(nn.Module):
    """Adds the mean of the experts' features ("average" in Fig. 8)."""

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> FusionOutput:
        """Add the mean of ``experts`` to ``stream``; the attention is 1 / number of experts everywhere."""
        mean = torch.stack(list(experts)).mean(dim=0)
        batch, _, *size = stream.shape
        attention = stream.new_full((batch, len(experts), *size), 1 / len(experts))
        return FusionOutput(stream + mean, attention)


class ConcatFusion(nn.Module):
    """Adds a 1x1x1 convolution of the concatenated experts' features ("concat" in Fig. 8)."""

    def __init__(self, channels: int, n_experts: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels * n_experts, channels, kernel_size=1)

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> FusionOutput:
        """Add the convolved concatenation of ``experts`` to ``stream``. There is no attention."""
        return FusionOutput(stream + self.reduce(torch.cat(list(experts), dim=1)), None)


class NoFusion(nn.Module):
    """Ignores the experts: an aggregation decoder on its own (Table 3, "without DFAM")."""

    def forward(self, experts: Sequence[Tensor], stream: Tensor) -> FusionOutput:
        """Return ``stream`` unchanged. There is no attention."""
        return FusionOutput(stream, None)


def make_fusion(kind: FusionKind, channels: int, n_experts: int) -> nn.Module:
    """Create the fusion module of one level, for ``n_experts`` experts with ``channels`` channels each.

    Raises ValueError for an unknown ``kind``.
    """
    if kind == "dfam":
        return DFAM(channels, n_experts)
    if kind == "average":
        return AverageFusion()
    if kind == "concat":
        return ConcatFusion(channels, n_experts)
    if kind == "none":
        return NoFusion()
    raise ValueError(f"fusion must be 'dfam', 'average', 'concat' or 'none', not {kind!r}")
