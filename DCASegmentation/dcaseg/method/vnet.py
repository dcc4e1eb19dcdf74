"""The V-Net blocks every part of DCA is made of, and the shared encoder.

The encoder is the one of the semi-supervised V-Net family the paper builds on: convolution units of 3x3x3, strided
2x2x2 convolutions down, transposed 2x2x2 convolutions or trilinear interpolation up, skips that are added.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "instance"]
UpsamplingMode = Literal["transposed", "transposed_icnr", "trilinear"]


def normalization(kind: Norm, channels: int) -> nn.Module:
    """The normalization layer of ``kind`` with learned scale and shift.

    Raises ValueError for another kind.
    """
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    raise ValueError(f"norm must be 'batch' or 'instance', not {kind!r}")


def initialize_kaiming(network: nn.Module) -> None:
    """Draw the weights of every convolution of ``network`` that is not all zeros from N(0, 2 / fan-in).

    As GALoss and DHC initialize their V-Nets: transposed convolutions and biases keep PyTorch's values. A convolution
    whose weights start at zero on purpose (a DFAM's gate, the head of a correction) keeps its zeros.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.weight.any():
            nn.init.kaiming_normal_(module.weight)


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


class TrilinearUpsampling(nn.Module):
    """A 1x1x1 convolution, then twice the size by trilinear interpolation.

    (batch, in_channels, d, h, w) becomes (batch, out_channels, 2d, 2h, 2w). Both steps are linear and the weights of
    an interpolation sum to one, so their order does not matter; this one convolves an eighth of the voxels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Twice the size of ``features``, with ``out_channels`` channels."""
        return functional.interpolate(self.reduce(features), scale_factor=2.0, mode="trilinear", align_corners=False)


class Upsampling(nn.Sequential):
    """Doubles each side and changes the channels: up-sampling, normalization, ReLU.

    ``transposed`` is the V-Net family's 2x2x2 convolution with stride 2. It has one kernel for each of the eight
    voxels that a coarse voxel becomes, so its output carries a checkerboard, which a dilated convolution after it
    cannot see (its response at the Nyquist frequency is that at zero). ``transposed_icnr`` starts with eight equal
    kernels (Aitken et al. 2017, arXiv:1707.02937); training may part them again. ``trilinear`` cannot make a
    checkerboard. Raises ValueError for another mode.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, mode: UpsamplingMode = "transposed") -> None:
        up: nn.Module
        if mode in ("transposed", "transposed_icnr"):
            up = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=2, stride=2)
            if mode == "transposed_icnr":
                with torch.no_grad():
                    up.weight.copy_(up.weight[:, :, :1, :1, :1].expand_as(up.weight))
        elif mode == "trilinear":
            up = TrilinearUpsampling(in_channels, out_channels)
        else:
            raise ValueError(f"upsampling must be 'transposed', 'transposed_icnr' or 'trilinear', not {mode!r}")
        super().__init__(up, normalization(norm, out_channels), nn.ReLU(inplace=True))


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
        """x1 to x5 of ``volume`` (batch, in_channels, depth, height, width), whose sides 16 divides."""
        features = [self.blocks[0](volume)]
        for down, block in zip(self.downs, self.blocks[1:], strict=True):
            features.append(block(down(features[-1])))
        features[-1] = self.dropout(features[-1])
        return features
