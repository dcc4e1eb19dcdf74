"""The network that corrects with clicks: the engine, and its model on disk.

The network knows no organ: it is told what is meant by the mask and the strokes (Xu et al., Deep interactive object
selection, CVPR 2016; Sakinis et al., Interactive segmentation of medical images through fully convolutional neural
networks, 2019). It starts as the identity: its output is added to the log-odds that the present mask has by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from ..errors import BundleError
from ..imaging.grid import Grid, model_grid
from ..imaging.resampling import resample
from ..imaging.writers import new_folder, write_json, write_text
from ..method.vnet import ConvBlock, Downsampling, Upsampling
from ..models.metadata import METADATA, WEIGHTS, TrainingData, Weights
from ..models.metadata_reader import GET_AGAIN
from ..models.weights import load_weights, write_weights
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


FORMAT = 1
LICENSE = "LICENSE"
_KIND = "dca_clicks"


@dataclass(frozen=True)
class ClickBundle:
    """A network for clicks in ``folder``, its weights described by ``weights``.

    ``training_data`` are the sources of its training cases, ``scores`` what was measured, ``steps`` its training.
    """

    folder: Path
    name: str
    options: ClickNetworkOptions
    weights: Weights
    training_data: tuple[TrainingData, ...] = ()
    steps: int = 0
    scores: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"

    def network(self) -> ClickNetwork:
        """The network with its weights. Raises BundleError unless the file is the one described, and nothing else."""
        return load_weights(self.folder, self.weights, lambda: ClickNetwork(**asdict(self.options))).eval()


def save_click_bundle(
    folder: Path,
    network: ClickNetwork,
    name: str,
    training_data: Sequence[TrainingData],
    steps: int,
    scores: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ClickBundle:
    """Write the bundle ``folder``, whole or not at all. Raises OutputError where it cannot be written."""
    with new_folder(folder, overwrite=overwrite, recognized_by=METADATA) as temporary:
        for file in (METADATA, WEIGHTS):
            (temporary / file).parent.mkdir(exist_ok=True)
        weights = write_weights(network, temporary, WEIGHTS, "float16")
        content = {
            "name": name,
            "version": "0.1.0",
            "task": "Correction of any structure in CT with clicks",
            "description": f"Class-agnostic click network, {steps} steps on synthetic CT with simulated clicks.",
            "intended_use": "Research. This is no medical device.",
            "license": "Apache-2.0",
            _KIND: {
                "format": FORMAT,
                "network": asdict(network.options),
                "channels": list(CHANNELS),
                "weights": asdict(weights),
                "training_data": [asdict(each) for each in training_data],
                "steps": steps,
                "scores": dict(scores or {}),
            },
        }
        write_json(content, temporary / METADATA)
        write_text(_LICENSE, temporary / LICENSE)
        load_click_bundle(temporary).network()
    return load_click_bundle(folder)


def load_click_bundle(folder: Path) -> ClickBundle:
    """The bundle in ``folder``, its weights not read yet. Raises BundleError where it is none."""
    path = folder / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own = content[_KIND]
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(
            f"{folder} is no bundle of a network for clicks.", "Choose one that dca train-clicks made."
        ) from None
    try:
        if own["format"] != FORMAT or tuple(own["channels"]) != CHANNELS:
            raise ValueError("another format")
        return ClickBundle(
            folder=folder,
            name=str(content["name"]),
            options=ClickNetworkOptions(**own["network"]),
            weights=Weights(**own["weights"]),
            training_data=tuple(TrainingData(**each) for each in own["training_data"]),
            steps=int(own["steps"]),
            scores=dict(own["scores"]),
            licence=str(content["license"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"The metadata of {folder} are damaged ({error}).", GET_AGAIN) from None


_LICENSE = """The weights of this model are licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The data they were trained on and their
licences are listed in configs/metadata.json.
"""
