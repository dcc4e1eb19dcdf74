"""The network that corrects with clicks: the engine, and its model on disk.

The network is class-agnostic: the mask and the strokes define the organ (Xu et al., Deep interactive object selection,
CVPR 2016; Sakinis et al., Interactive segmentation of medical images through fully convolutional neural networks,
2019). It starts as the identity: its output is added to the log-odds of the current mask.
"""

from __future__ import annotations

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
from ..imaging.grid import Grid, make_model_grid
from ..imaging.resampling import resample
from ..imaging.writers import new_folder, write_json, write_text
from ..json_io import DataError, dump, load, parse_json
from ..method.vnet import ConvBlock, Downsampling, Upsampling
from ..models.metadata import CLICK_NETWORK, METADATA, WEIGHTS, TrainingData, Weights
from ..models.metadata_reader import GET_AGAIN, MAX_METADATA_BYTES, check_weights
from ..models.weight_files import open_regular
from ..models.weights import load_weights, write_weights
from .click_options import ClickNetworkOptions
from .random_walker import remove_new_islands
from .view import FloatArray, Mask, View, ViewStroke, compute_signed_distance

CHANNELS = ("ct", "mask_distance", "added", "removed", "others", "latest")
ORIENTATION = "RAS"

_HU = (-200.0, 350.0)
_MAX_DEPTH_MM = 15.0
_STROKE_MM = 5.0
# Log-odds of a voxel _MAX_DEPTH_MM inside the mask, to which the network adds its output.
_IDENTITY = 4.0


class ClickNetwork(nn.Module):
    """A U-Net with four levels; see ``ClickNetworkOptions`` for the arguments."""

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
        """Return the organ's log-odds (batch, depth, height, width).

        ``cubes`` are (batch, channel, depth, height, width), with the channels ``CHANNELS``.
        """
        features = [self.encoders[0](cubes)]
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            features.append(encoder(down(features[-1])))
        x = features.pop()
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + features.pop())
        correction: Tensor = self.head(x)
        return correction[:, 0] + _IDENTITY * cubes[:, CHANNELS.index("mask_distance")]


def make_network_input(
    hu: FloatArray, mask: Mask, others: Mask, strokes: Sequence[ViewStroke], spacing_mm: float
) -> FloatArray:
    """Return the network's input (channel, depth, height, width), float32, with the channels ``CHANNELS``.

    ``hu``, ``mask`` and ``others`` are arrays (z, y, x) of a cube with voxels of ``spacing_mm``. ``others`` is the mask
    of other segments. The latest of ``strokes`` is the last one.
    """
    spacing = (spacing_mm,) * 3
    maps = {True: np.zeros(hu.shape, np.float32), False: np.zeros(hu.shape, np.float32)}
    latest = np.zeros(hu.shape, np.float32)
    for stroke in strokes:
        if not len(stroke.voxels):
            continue
        seeds = np.zeros(hu.shape, bool)
        seeds[tuple(stroke.voxels.T)] = True
        distance = np.maximum(compute_signed_distance(seeds, spacing), 0.0)
        np.maximum(maps[stroke.adds], np.exp(-0.5 * (distance / _STROKE_MM) ** 2), out=maps[stroke.adds])
        radius = float(np.clip(14.0 if stroke.radius_mm is None else stroke.radius_mm, 3.0, 25.0))
        latest = (1.0 if stroke.adds else -1.0) * np.exp(-0.5 * (distance / radius) ** 2).astype(np.float32)
    low, high = _HU
    scaled = (np.clip(hu, low, high) - low) / (high - low) * 2 - 1
    # Distances are 0 in the mask's outermost voxels, but its border lies half a voxel farther out.
    depth = np.clip((0.5 * spacing_mm - compute_signed_distance(mask, spacing)) / _MAX_DEPTH_MM, -1.0, 1.0)
    return np.stack([scaled, depth, maps[True], maps[False], others.astype(np.float32), latest]).astype(np.float32)


class NetworkEngine:
    """The engine that runs a ``ClickNetwork`` on ``device``."""

    name = "network"

    def __init__(self, network: ClickNetwork, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = network.eval().to(self._device)

    def predict_foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``. Voxels of the view outside the network's cube do not change."""
        options = self._network.options
        cube = make_cube_grid(view, options)
        hu = _get_array(resample(view.grid.make_image(view.hu), cube))
        mask = _get_array(resample(view.grid.make_image(view.mask.astype(np.float32)), cube, outside=0.0)) > 0.5
        others = _get_array(resample(view.grid.make_image(view.others.astype(np.float32)), cube, outside=0.0)) > 0.5
        strokes = [
            ViewStroke(_transfer(each.voxels, view.grid, cube), each.adds, each.radius_mm) for each in view.strokes
        ]
        cubes = torch.from_numpy(make_network_input(hu, mask, others, strokes, options.spacing_mm))[None]
        with torch.inference_mode():
            odds = self._network(cubes.to(self._device))[0].float().cpu().numpy()
        found = (1 / (1 + np.exp(-odds))).astype(np.float32)
        # Without the outermost voxels, which resampling repeats beyond the cube.
        inside = np.zeros(found.shape, np.float32)
        inside[1:-1, 1:-1, 1:-1] = 1.0
        answer = _get_array(resample(cube.make_image(found), view.grid, outside=0.0))
        covered = _get_array(resample(cube.make_image(inside), view.grid, outside=0.0)) > 0.99
        # Only where the network changes the mask: elsewhere, resampling there and back only rounds the borders.
        changed = (found > 0.5) != mask
        near = _get_array(resample(cube.make_image(changed.astype(np.float32)), view.grid, outside=0.0)) > 0.0
        return remove_new_islands(np.where(covered & near, answer, view.mask.astype(np.float32)), view)


def make_cube_grid(view: View, options: ClickNetworkOptions) -> Grid:
    """Return the grid of the network's cube: around the middle of the latest stroke, with the axes ``ORIENTATION``."""
    oriented = make_model_grid(view.grid, (options.spacing_mm,) * 3, ORIENTATION)
    voxels = view.strokes[-1].voxels
    middle = (voxels.min(axis=0) + voxels.max(axis=0))[::-1] / 2
    center = np.array(view.grid.origin) + view.grid.axes @ (middle * np.array(view.grid.spacing))
    # The click lies on the center of a voxel.
    x, y, z = (center - oriented.axes @ np.full(3, (options.side // 2) * options.spacing_mm)).tolist()
    return Grid((options.side,) * 3, (options.spacing_mm,) * 3, (x, y, z), oriented.direction)


def _transfer(voxels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Convert voxels (n, 3), in the order (z, y, x), from one grid to another, without those outside of it."""
    points = np.array(source.origin) + (voxels[:, ::-1] * np.array(source.spacing)) @ source.axes.T
    index = np.rint((points - np.array(target.origin)) @ target.axes / np.array(target.spacing)).astype(np.int64)
    kept = ((index >= 0) & (index < np.array(target.size))).all(axis=1)
    return np.unique(index[kept][:, ::-1], axis=0)


def _get_array(image: sitk.Image) -> FloatArray:
    return sitk.GetArrayFromImage(image)


FORMAT = 1
LICENSE = "LICENSE"


@dataclass(frozen=True)
class ClickBundle:
    """The bundle of a click network in ``folder``.

    ``weights`` describes the file of the weights, ``training_data`` the sources of the training cases, ``steps`` the
    number of training steps, ``scores`` the measured scores.
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
        """Load the network with its weights. Raises BundleError if the file is not exactly the one described."""
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
    """Write the bundle ``folder``, completely or not at all. Raises OutputError if it cannot be written."""
    with new_folder(folder, overwrite=overwrite, recognized_by=METADATA) as temporary:
        for file in (METADATA, WEIGHTS):
            (temporary / file).parent.mkdir(exist_ok=True)
        weights = write_weights(network, temporary, WEIGHTS, "float16")
        content = {
            "name": name,
            "version": "0.1.0",
            "task": "Correction of any structure in CT with clicks",
            "description": f"Class-agnostic click network, {steps} steps on synthetic CT with simulated clicks.",
            "intended_use": "Research. This is not a medical device.",
            "license": "Apache-2.0",
            CLICK_NETWORK: {
                "format": FORMAT,
                "network": asdict(network.options),
                "channels": list(CHANNELS),
                "weights": asdict(weights),
                "training_data": [dump(each) for each in training_data],
                "steps": steps,
                "scores": dict(scores or {}),
            },
        }
        write_json(content, temporary / METADATA)
        write_text(_LICENSE, temporary / LICENSE)
        load_click_bundle(temporary).network()
    return load_click_bundle(folder)


def load_click_bundle(folder: Path) -> ClickBundle:
    """Read the bundle in ``folder`` without its weights. Raises BundleError if it is not that of a click network."""
    other = BundleError(
        f"{folder} is not the bundle of a click network.", "Choose a bundle that dca train-clicks wrote."
    )
    if not (folder / METADATA).is_file():
        raise other
    try:
        with open_regular(folder, METADATA) as file:
            content = parse_json(file.read(MAX_METADATA_BYTES))
        own = content[CLICK_NETWORK]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise other from None
    try:
        described = load(_Description, own, CLICK_NETWORK)
        about = load(_About, content, ignore_unknown=True)
        weights = check_weights(described.weights)
    except DataError as error:
        raise BundleError(f"The metadata in {folder} is damaged ({error}).", GET_AGAIN) from None
    if described.format != FORMAT or described.channels != CHANNELS:
        raise BundleError(f"The metadata in {folder} is damaged (unknown format).", GET_AGAIN)
    return ClickBundle(
        folder=folder,
        name=about.name,
        options=described.network,
        weights=weights,
        training_data=described.training_data,
        steps=described.steps,
        scores=described.scores,
        licence=about.license,
    )


@dataclass(frozen=True)
class _About:
    """What the metadata state for other programs, too."""

    name: str
    license: str


@dataclass(frozen=True)
class _Description:
    """What the metadata state for this program."""

    format: int
    network: ClickNetworkOptions
    channels: tuple[str, ...]
    weights: Weights
    training_data: tuple[TrainingData, ...]
    steps: int
    scores: Mapping[str, Any]


_LICENSE = """The weights of this model are licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The data they were trained on and their
licenses are listed in configs/metadata.json.
"""
