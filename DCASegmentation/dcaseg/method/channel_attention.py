"""Attention over channels at the bottleneck, as in SKCDF (Zhang et al., CVPR 2025).

DCA does not use it. It is here so that a model trained with ``training.strategies.skcdf`` can be run from its bundle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .network import DCANet

_DROPOUT = 0.1


class ChannelAttention(nn.Module):
    """Attention whose tokens are channels, on features (batch, channel, d, h, w) of a fixed ``size`` (d, h, w).

    The windows of ``kernel`` voxels of each channel are embedded separately, with as many numbers as voxels. Queries,
    keys and values have twice the number of channels. The attention map is normalized before the softmax.
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
        """Let ``features`` attend to all of ``others`` together or, without them, each to itself with two heads.

        All are (batch, channel, d, h, w). Raises ValueError for features of another size.
        """
        tokens = self._embed_channels(features)
        normed = self.before(tokens)
        query = self.query(normed).transpose(1, 2)
        if others is None:
            key, value = self.key(normed).transpose(1, 2), self.value(normed).transpose(1, 2)
            heads = [
                self._attend(*three) for three in zip(*(x.chunk(2, dim=1) for x in (query, key, value)), strict=True)
            ]
            result = torch.cat(heads, dim=1)
        else:
            attended = self.before(self._embed_channels(others))
            # One set of keys and values, the channels of all patches.
            key, value = (
                layer(attended).transpose(1, 2).flatten(0, 1)[None].expand(len(features), -1, -1)
                for layer in (self.key, self.value)
            )
            result = self._attend(query, key, value)
        tokens = self.after(tokens + self.merge(self.dropout(result.transpose(1, 2))))
        mixed: Tensor = self.mix(self._reshape_to_volume(tokens))
        return mixed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attended values (batch, tokens, positions) of the queries; keys are (batch, other tokens, positions)."""
        weights = (query / math.sqrt(query.shape[2]) @ key.transpose(1, 2)).float()
        weights = functional.instance_norm(weights[:, None])[:, 0].softmax(dim=2)
        return weights.to(value.dtype) @ value

    def _embed_channels(self, features: Tensor) -> Tensor:
        """Embed every channel separately: (batch, positions, channel)."""
        batch, channels = features.shape[:2]
        if tuple(features.shape[2:]) != self._size:
            raise ValueError(f"the attention needs features of size {self._size}, not {tuple(features.shape[2:])}")
        embedded = self.embed(features.reshape(batch * channels, 1, *self._size))
        return embedded.reshape(batch, channels, -1).transpose(1, 2)

    def _reshape_to_volume(self, tokens: Tensor) -> Tensor:
        """Convert tokens back to (batch, channel, d, h, w): the numbers of a window become its voxels."""
        batch, _, channels = tokens.shape
        grid = tokens.transpose(1, 2).reshape(batch, channels, *self._kernel, *self._windows)
        return grid.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels, *self._size)


class AttendingNet(DCANet):
    """A network with attention over channels at the bottleneck: of windows, then of the whole.

    ``attended_patch`` (depth, height, width) is the size of all input volumes; ``options`` are those of ``DCANet``.
    Raises ValueError for an aggregation decoder, or a patch that is not a multiple of ``divisor``.
    """

    def __init__(self, attended_patch: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        if self.aggregation is not None:
            raise ValueError("a network with channel attention must not have an aggregation decoder")
        if len(attended_patch) != 3 or any(side < 1 or side % self.divisor for side in attended_patch):
            raise ValueError(f"the sides of the attended patch must be multiples of {self.divisor}")
        self.options |= {"attended_patch": list(attended_patch)}
        size = [side // self.divisor for side in attended_patch]
        channels = 16 * self.options["n_filters"]
        self.attention = nn.ModuleList(
            ChannelAttention(channels, size, kernel) for kernel in ([2 if side % 2 == 0 else 1 for side in size], size)
        )

    def encode(self, volume: Tensor) -> list[Tensor]:
        """The encoder's features; the deepest attend to themselves. See ``DCANet.encode``."""
        return self.apply_attention(super().encode(volume))

    def apply_attention(self, features: list[Tensor], others: Tensor | None = None) -> list[Tensor]:
        """Apply the attention to the deepest of ``features``, which attend to ``others`` or to themselves."""
        deepest = features[-1]
        for block in self.attention:
            # Both blocks attend to the same, unchanged others.
            deepest = block(deepest, others)
        return [*features[:-1], deepest]
