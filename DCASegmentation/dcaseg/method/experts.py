"""The expert decoders: V-Net decoders that differ in depth and dilation (Table 5, row "Ours")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .vnet import ConvBlock, Norm, Upsampling, UpsamplingMode

# {DeB-6, DeB-7, DeB-8, DeB-9} of the head, medium and tail expert.
PAPER_N_STAGES = ((2, 2, 1, 1), (3, 3, 2, 1), (4, 4, 3, 2))
PAPER_DILATIONS = ((2, 2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1))
VNET_N_STAGES = (3, 3, 2, 1)


class Decoded(NamedTuple):
    """What an expert makes of a volume.

    ``features`` are F6 to F9, with 8f, 4f, 2f and f channels at 1/8, 1/4, 1/2 and full resolution; ``logits`` have
    the shape (batch, channel, depth, height, width).
    """

    features: list[Tensor]
    logits: Tensor


class ExpertDecoder(nn.Module):
    """One expert: up-sampling, added skip and a convolution block at each of four levels, then a 1x1x1 head.

    ``n_stages`` and ``dilation`` hold one number for each of DeB-6 to DeB-9. The head has all channels of the
    network, indexed by true label, though the label split teaches it its own group only.
    """

    def __init__(
        self,
        n_filters: int,
        out_channels: int,
        norm: Norm,
        n_stages: Sequence[int] = VNET_N_STAGES,
        dilation: Sequence[int] = (1, 1, 1, 1),
        dropout: float = 0.0,
        upsampling: UpsamplingMode = "transposed",
    ) -> None:
        super().__init__()
        if len(n_stages) != 4 or len(dilation) != 4:
            raise ValueError("an expert has four decoder blocks: n_stages and dilation need four numbers each")
        self.n_stages = tuple(n_stages)
        widths = [n_filters * 2**level for level in (3, 2, 1, 0)]
        self.ups = nn.ModuleList(Upsampling(2 * width, width, norm, upsampling) for width in widths)
        self.blocks = nn.ModuleList(
            ConvBlock(width, width, stages, norm, spread)
            for width, stages, spread in zip(widths, n_stages, dilation, strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(n_filters, out_channels, kernel_size=1)

    def forward(self, encoded: Sequence[Tensor]) -> Decoded:
        """F6 to F9 and the logits from x1 to x5 of the encoder, ``encoded``."""
        features: list[Tensor] = []
        stream = encoded[-1]
        for up, block, skip in zip(self.ups, self.blocks, reversed(encoded[:-1]), strict=True):
            stream = block(up(stream) + skip)
            features.append(stream)
        return Decoded(features, self.head(self.dropout(stream)))
