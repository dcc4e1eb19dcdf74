"""The expert decoders: V-Net decoders that differ in depth and dilation (Table 5, row "Ours")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .variants import VNET_N_STAGES, Norm, UpsamplingMode
from .vnet import ConvBlock, Upsampling


class DecoderOutput(NamedTuple):
    """Features and logits of one expert.

    ``features`` are F6 to F9, each (batch, channel, depth, height, width), with 8f, 4f, 2f and f channels at 1/8, 1/4,
    1/2 and full resolution (f is ``n_filters``). ``logits`` are (batch, channel, depth, height, width) with a channel
    for the background and for each label.
    """

    features: list[Tensor]
    logits: Tensor


class ExpertDecoder(nn.Module):
    """One expert: at each of four levels upsampling, an added skip and a convolution block; then a 1x1x1 head.

    ``n_stages`` (convolutions per block) and ``dilation`` hold one number for each of DeB-6 to DeB-9. The head has a
    channel for every label of the network, although the label split trains only those of the expert's own group.

    Raises ValueError if ``n_stages`` or ``dilation`` does not hold four numbers.
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
            raise ValueError("n_stages and dilation need four numbers each, one for each decoder block")
        self.n_stages = tuple(n_stages)
        widths = [n_filters * 2**level for level in (3, 2, 1, 0)]
        self.ups = nn.ModuleList(Upsampling(2 * width, width, norm, upsampling) for width in widths)
        self.blocks = nn.ModuleList(
            ConvBlock(width, width, stages, norm, block_dilation)
            for width, stages, block_dilation in zip(widths, n_stages, dilation, strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(n_filters, out_channels, kernel_size=1)

    def forward(self, encoded: Sequence[Tensor]) -> DecoderOutput:
        """Decode the encoder's features x1 to x5 (``encoded``, see ``vnet.Encoder``) to F6 to F9 and the logits.

        The logits are in single precision even under autocast, because every loss needs that.
        """
        features: list[Tensor] = []
        stream = encoded[-1]
        for up, block, skip in zip(self.ups, self.blocks, reversed(encoded[:-1]), strict=True):
            stream = block(up(stream) + skip)
            features.append(stream)
        return DecoderOutput(features, self.head(self.dropout(stream)).float())
