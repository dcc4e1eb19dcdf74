"""The engine with a network: CT, present mask and strokes in a cube around the click, the corrected mask out.

The network knows no organ: it is told what is meant by the mask and the strokes (Xu et al., Deep interactive object
selection, CVPR 2016; Sakinis et al., Interactive segmentation of medical images through fully convolutional neural
networks, 2019). It starts as the identity: its output is added to the log-odds that the present mask has by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from ..imaging.grid import Grid, model_grid
from ..imaging.resampling import resample
from ..method.vnet import ConvBlock, Downsampling, Upsampling
from .random_walker import without_islands
from .view import FloatArray, Mask, SeenStroke, View, distance_to

CHANNELS = ("ct", "mask_distance", "added", "removed", "others", "latest")
ORIENTATION = "RAS"

_HU = (-200.0, 350.0)
_DEEPEST_MM = 15.0
_STROKE_MM = 5.0
# Log-odds of a voxel _DEEPEST_MM inside the mask, before the network adds its own.
_IDENTITY = 4.0


@dataclass(frozen=True)
class ClickNetworkOptions:
    """``n_filters``: channels at full resolution. ``side``: voxels of the cube, a multiple of 8. ``spacing_mm``: of its
    voxels along all axes."""

    n_filters: int = 12
    side: int = 48
    spacing_mm: float = 2.0

    def __post_init__(self) -> None:
        if self.n_filters < 1 or self.side < 16 or self.side % 8 or not 0.5 <= self.spacing_mm <= 6.0:
            raise ValueError(f"no network can have these options: {asdict(self)}")


class ClickNetwork(nn.Module):
    """A U-Net of four levels."""

    def __init__(self, n_filters: int = 12, side: int = 48, spacing_mm: float = 2.0) -> None:
        super().__init__()
        self.options = ClickNetworkOptions(n_filters, side, spacing_mm)
        widths = [n_filters * 2**level for level in range(4)]
        self.encoders = nn.ModuleList(
            ConvBlock(len(CHANNELS) if level == 0 else width, width, 2 if level else 1, "instance")
            for level, width in enumerate(widths)
        )
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(Downsampling(fine, coarse, "instance") for fine, coarse in pairs)
        self.ups = nn.ModuleList(Upsampling(coarse, fine, "instance") for fine, coarse in reversed(pairs))
        self.decoders = nn.ModuleList(ConvBlock(fine, fine, 1, "instance") for fine, _ in reversed(pairs))
        self.head = nn.Conv3d(widths[0], 1, kernel_size=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, cubes: Tensor) -> Tensor:
        """(batch, channel, depth, height, width), channels as ``CHANNELS``, to log-odds (batch, depth, height, width)
        of the organ."""
        features = [self.encoders[0](cubes)]
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            features.append(encoder(down(features[-1])))
        x = features.pop()
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + features.pop())
        added: Tensor = self.head(x)
        return added[:, 0] + _IDENTITY * cubes[:, CHANNELS.index("mask_distance")]


def features_of(
    hu: FloatArray, mask: Mask, others: Mask, strokes: Sequence[SeenStroke], spacing_mm: float
) -> FloatArray:
    """The network's input (channel, depth, height, width): arrays (z, y, x) of a cube, the latest stroke last."""
    spacing = (spacing_mm,) * 3
    maps = {True: np.zeros(hu.shape, np.float32), False: np.zeros(hu.shape, np.float32)}
    latest = np.zeros(hu.shape, np.float32)
    for stroke in strokes:
        if not len(stroke.voxels):
            continue
        seeds = np.zeros(hu.shape, bool)
        seeds[tuple(stroke.voxels.T)] = True
        away = np.maximum(distance_to(seeds, spacing), 0.0)
        np.maximum(maps[stroke.adds], np.exp(-0.5 * (away / _STROKE_MM) ** 2), out=maps[stroke.adds])
        radius = float(np.clip(14.0 if stroke.radius_mm is None else stroke.radius_mm, 3.0, 25.0))
        latest = (1.0 if stroke.adds else -1.0) * np.exp(-0.5 * (away / radius) ** 2).astype(np.float32)
    low, high = _HU
    scaled = (np.clip(hu, low, high) - low) / (high - low) * 2 - 1
    # Distances are 0 on the mask's outermost voxels: its border lies half a voxel farther out.
    depth = np.clip((0.5 * spacing_mm - distance_to(mask, spacing)) / _DEEPEST_MM, -1.0, 1.0)
    return np.stack([scaled, depth, maps[True], maps[False], others.astype(np.float32), latest]).astype(np.float32)


class NetworkEngine:
    """Runs a ``ClickNetwork`` in evaluation mode on a view."""

    name = "network"

    def __init__(self, network: ClickNetwork, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = network.eval().to(self._device)

    def foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``. What lies in the view but not in the network's cube stays."""
        options = self._network.options
        cube = cube_around(view, options)
        hu = _array(resample(view.grid.image_of(view.hu), cube))
        mask = _array(resample(view.grid.image_of(view.mask.astype(np.float32)), cube, outside=0.0)) > 0.5
        others = _array(resample(view.grid.image_of(view.others.astype(np.float32)), cube, outside=0.0)) > 0.5
        strokes = [SeenStroke(_moved(each.voxels, view.grid, cube), each.adds, each.radius_mm) for each in view.strokes]
        cubes = torch.from_numpy(features_of(hu, mask, others, strokes, options.spacing_mm))[None]
        with torch.inference_mode():
            odds = self._network(cubes.to(self._device))[0].float().cpu().numpy()
        found = (1 / (1 + np.exp(-odds))).astype(np.float32)
        # Without its outermost voxels, which resampling repeats beyond the cube.
        inside = np.zeros(found.shape, np.float32)
        inside[1:-1, 1:-1, 1:-1] = 1.0
        answer = _array(resample(cube.image_of(found), view.grid, outside=0.0))
        covered = _array(resample(cube.image_of(inside), view.grid, outside=0.0)) > 0.99
        # Only where the network changes its own mask: the way there and back has rounded borders everywhere else.
        changed = (found > 0.5) != mask
        near = _array(resample(cube.image_of(changed.astype(np.float32)), view.grid, outside=0.0)) > 0.0
        return without_islands(np.where(covered & near, answer, view.mask.astype(np.float32)), view)


def cube_around(view: View, options: ClickNetworkOptions) -> Grid:
    """The cube that the network sees: around the middle of the latest stroke, axes to the right, front and head."""
    oriented = model_grid(view.grid, (options.spacing_mm,) * 3, ORIENTATION)
    voxels = view.strokes[-1].voxels
    middle = (voxels.min(axis=0) + voxels.max(axis=0))[::-1] / 2
    center = np.array(view.grid.origin) + view.grid.axes @ (middle * np.array(view.grid.spacing))
    # The click lies on a voxel's center.
    x, y, z = (center - oriented.axes @ np.full(3, (options.side // 2) * options.spacing_mm)).tolist()
    return Grid((options.side,) * 3, (options.spacing_mm,) * 3, (x, y, z), oriented.direction)


def _moved(voxels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Voxels (n, 3), (z, y, x), of one grid as those of another; what lies outside of it is left out."""
    places = np.array(source.origin) + (voxels[:, ::-1] * np.array(source.spacing)) @ source.axes.T
    index = np.rint((places - np.array(target.origin)) @ target.axes / np.array(target.spacing)).astype(np.int64)
    kept = ((index >= 0) & (index < np.array(target.size))).all(axis=1)
    return np.unique(index[kept][:, ::-1], axis=0)


def _array(image: sitk.Image) -> FloatArray:
    return sitk.GetArrayFromImage(image)
