"""The V-Net blocks that all parts of DCA consist of, and the shared encoder.

They follow the V-Net of the semi-supervised methods that the paper builds on: 3x3x3 convolutions, strided 2x2x2
convolutions for downsampling, transposed 2x2x2 convolutions or trilinear interpolation for upsampling, added skips.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .variants import Norm, UpsamplingMode


def get_norm_layer(kind: Norm, channels: int) -> nn.Module:
    """Create a normalization layer of this ``kind`` with learned scale and shift.

    Raises ValueError for an unknown kind.
    """
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    raise ValueError(f"norm must be 'batch' or 'instance', not {kind!r}")


def initialize_kaiming(network: nn.Module) -> None:
    """Draw the weights of every convolution of ``network`` from N(0, 2 / fan-in), as GALoss and DHC do.

    Transposed convolutions and biases keep PyTorch's initialization. Convolutions that start at zero on purpose (the
    gate of a DFAM, the head of a residual aggregation decoder) stay at zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.weight.any():
            nn.init.kaiming_normal_(module.weight)


class ConvBlock(nn.Sequential):
    """``n_stages`` times a 3x3x3 convolution, normalization and ReLU. The size of the volume does not change.

    Raises ValueError if ``n_stages`` is below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, n_stages: int, norm: Norm, dilation: int = 1) -> None:
        if n_stages < 1:
            raise ValueError(f"a convolution block needs at least one stage, not {n_stages}")
        layers: list[nn.Module] = []
        for stage in range(n_stages):
            channels = in_channels if stage == 0 else out_channels
            layers += [
                nn.Conv3d(channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation),
                get_norm_layer(norm, out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class Downsampling(nn.Sequential):
    """Halves each side with a strided 2x2x2 convolution, then applies normalization and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size=2, stride=2),
            get_norm_layer(norm, out_channels),
            nn.ReLU(inplace=True),
        )


class TrilinearUpsampling(nn.Module):
    """A 1x1x1 convolution, then trilinear interpolation to twice the size.

    Both steps are linear and the weights of the interpolation sum to one, so their order does not matter. In this order
    the convolution has an eighth of the voxels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, depth, height, width) to (batch, out_channels, 2 depth, 2 height, 2 width)."""
        return functional.interpolate(self.reduce(features), scale_factor=2.0, mode="trilinear", align_corners=False)


class Upsampling(nn.Sequential):
    """Doubles each side: upsampling, normalization, ReLU.

    - ``transposed``: V-Net's transposed 2x2x2 convolution with stride 2. It has a separate kernel for each of the eight
      voxels that replace a coarse voxel, so its output contains a checkerboard pattern. A convolution with dilation 2
      after it cannot remove the pattern: its response at the Nyquist frequency equals that at frequency zero.
    - ``transposed_icnr``: the same, initialized with eight equal kernels (Aitken et al. 2017, arXiv:1707.02937).
      Training may make them differ again.
    - ``trilinear``: see ``TrilinearUpsampling``. It cannot produce a checkerboard.

    Raises ValueError for another mode.
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
        super().__init__(up, get_norm_layer(norm, out_channels), nn.ReLU(inplace=True))


class Encoder(nn.Module):
    """The encoder shared by the experts and the aggregation decoder.

    It has five levels with 1, 2, 3, 3 and 3 convolutions (``N_STAGES``). ``dropout`` is the probability that a channel
    of the deepest level is dropped in training.
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
        """The features x1 to x5, with f, 2f, 4f, 8f and 16f channels at full, 1/2, 1/4, 1/8 and 1/16 resolution.

        f is ``n_filters``. ``volume`` is (batch, in_channels, depth, height, width), with sides divisible by 16.
        """
        features = [self.blocks[0](volume)]
        for down, block in zip(self.downs, self.blocks[1:], strict=True):
            features.append(block(down(features[-1])))
        features[-1] = self.dropout(features[-1])
        return features
