"""The V-Net blocks every part of DCA is made of, and the shared encoder.

The encoder is the one of the semi-supervised V-Net family the paper builds on: convolution units of 3x3x3, strided
2x2x2 convolutions down, transposed 2x2x2 convolutions up, skips that are added.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "instance"]


def normalization(kind: Norm, channels: int) -> nn.Module:
    """The normalization layer of ``kind`` with learned scale and shift.

    Raises ValueError for another kind.
    """
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    raise ValueError(f"norm must be 'batch' or 'instance', not {kind!r}")


class ConvBlock(nn.Sequential):
    """``n_stages`` units of 3x3x3 convolution, normalization and ReLU; the size of the volume stays."""

    def __init__(self, in_channels: int, out_channels: int, n_stages: int, norm: Norm, dilation: int = 1) -> None:
        if n_stages < 1:
            raise ValueError(f"a convolution block needs at least one stage, not {n_stages}")
        layers: list[nn.Module] = []
        for stage in range(n_stages):
            channels = in_channels if stage == 0 else out_channels
            layers += [
                nn.Conv3d(channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation),
                normalization(norm, out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class Downsampling(nn.Sequential):
    """Halves each side and changes the channels."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size=2, stride=2),
            normalization(norm, out_channels),
            nn.ReLU(inplace=True),
        )


class Upsampling(nn.Sequential):
    """Doubles each side and changes the channels."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__(
            nn.ConvTranspose3d(in_channels, out_channels, kernel_size=2, stride=2),
            normalization(norm, out_channels),
            nn.ReLU(inplace=True),
        )


class Encoder(nn.Module):
    """The encoder shared by the experts and the aggregation decoder.

    (batch, in_channels, depth, height, width) becomes five features x1 to x5 with f, 2f, 4f, 8f and 16f channels at
    full, 1/2, 1/4, 1/8 and 1/16 resolution.
    """

    N_STAGES = (1, 2, 3, 3, 3)

    def __init__(self, in_channels: int, n_filters: int, norm: Norm, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [n_filters * 2**level for level in range(5)]
        self.blocks = nn.ModuleList(
            ConvBlock(in_channels if level == 0 else width, width, self.N_STAGES[level], norm)
            for level, width in enumerate(widths)
        )
        self.downs = nn.ModuleList(Downsampling(a, b, norm) for a, b in pairwise(widths))
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, volume: Tensor) -> list[Tensor]:
        features = [self.blocks[0](volume)]
        for down, block in zip(self.downs, self.blocks[1:], strict=True):
            features.append(block(down(features[-1])))
        features[-1] = self.dropout(features[-1])
        return features
