"""Measures artifacts in a network's attention: energy at the Nyquist frequency, and flips of the dominant expert.

Attention should follow organs. A checkerboard artifact of the network (see ``method.vnet.Upsampling``) appears as
energy at the Nyquist frequency, and as a dominant expert that changes from voxel to voxel within an organ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..imaging.grid import make_model_grid
from ..imaging.intensity import apply_window
from ..imaging.resampling import resample
from ..method.network import LEVELS, DCANet
from ..models.metadata import Metadata

# Number of lower frequencies to compare the Nyquist frequency with. The frequency next to it is skipped, since the
# window spreads energy into it.
_NEIGHBORS = 3
# The network halves its grid four times.
_STRIDE = 16


class AttentionQuality(NamedTuple):
    """Artifacts in attention maps.

    ``nyquist`` is the energy ratio of ``nyquist_ratio`` along (z, y, x); 1 means no artifact. ``flips`` is the fraction
    of organ voxels that have a face neighbor of the same organ with another dominant expert (NaN without organs).
    """

    nyquist: tuple[float, float, float]
    flips: float


def nyquist_ratio(maps: Tensor, axis: int) -> float:
    """Energy at the Nyquist frequency divided by the mean energy of nearby lower frequencies.

    ``maps`` is (batch, channel, depth, height, width); ``axis`` is 0 (depth) to 2 (width). Raises ValueError if the
    size along ``axis`` is odd or below 10.
    """
    size = maps.shape[2 + axis]
    if size % 2 or size < 2 * (_NEIGHBORS + 2):
        raise ValueError(f"the Nyquist frequency needs an even side of at least 10 voxels, not {size}")
    lines = maps.movedim(2 + axis, -1).double()
    # The window keeps the jump between the two ends of a line out of the highest frequencies.
    window = torch.hann_window(size, dtype=torch.float64, device=maps.device)
    power = torch.fft.rfft((lines - lines.mean(dim=-1, keepdim=True)) * window).abs().square()
    energy = power.flatten(0, -2).sum(dim=0)
    # White noise gives a ratio of 1: all bins of the real FFT, including the Nyquist bin, hold the same mean energy.
    return float(energy[-1] / energy[-2 - _NEIGHBORS : -2].mean().clamp(min=1e-30))


def count_dominant_flips(attention: Tensor, labels: Tensor) -> tuple[int, int]:
    """Count the organ voxels with a face neighbor of the same organ, and those where the dominant expert differs.

    ``attention`` is (batch, expert, depth, height, width), ``labels`` is (batch, depth, height, width). Returns the
    number of voxels with such a neighbor that has another dominant expert, and the number of voxels with any.
    """
    dominant = attention.argmax(dim=1)
    flipped = torch.zeros_like(labels, dtype=torch.bool)
    inner = torch.zeros_like(flipped)
    for axis in (1, 2, 3):
        count = labels.shape[axis] - 1
        organ, neighbor = labels.narrow(axis, 0, count), labels.narrow(axis, 1, count)
        same = (organ == neighbor) & (organ > 0)
        changed = same & (dominant.narrow(axis, 0, count) != dominant.narrow(axis, 1, count))
        for start in (0, 1):
            inner.narrow(axis, start, count).logical_or_(same)
            flipped.narrow(axis, start, count).logical_or_(changed)
    return int(flipped.sum()), int(inner.sum())


@torch.inference_mode()
def measure_attention(network: DCANet, volumes: Iterable[np.ndarray], patch: Sequence[int]) -> AttentionQuality:
    """Measure the full-resolution attention on ``volumes``, network inputs (depth, height, width) from 0 to 1.

    Each volume is cut into windows of ``patch`` voxels that do not overlap. A smaller volume has smaller windows.
    Raises ValueError if the network has no attention or no volume has 16 voxels along each axis.
    """
    level = LEVELS[-1]
    ratios: list[list[float]] = []
    flips = voxels = 0
    for volume in volumes:
        for patch_input in _iter_windows(volume, patch):
            parts = network.forward_all(torch.from_numpy(patch_input)[None, None], attention_levels=(level,))
            if level not in parts.attention:
                raise ValueError("this network has no attention")
            ratios.append([nyquist_ratio(parts.attention[level], axis) for axis in range(3)])
            changed, counted = count_dominant_flips(parts.attention[level], parts.aggregated.argmax(dim=1))
            flips += changed
            voxels += counted
    if not ratios:
        raise ValueError(f"no CT has {_STRIDE} voxels along each axis of the model's grid")
    z, y, x = np.mean(ratios, axis=0).tolist()
    return AttentionQuality((z, y, x), flips / voxels if voxels else float("nan"))


def preprocess_cts(cts: Iterable[sitk.Image], metadata: Metadata) -> Iterator[np.ndarray]:
    """Yield each CT on the model's grid, as the network gets it: (depth, height, width), float32, from 0 to 1."""
    for ct in cts:
        grid = make_model_grid(ct, metadata.spacing, metadata.orientation)
        resampled = resample(ct, grid, anti_aliasing=metadata.anti_aliasing)
        yield apply_window(sitk.GetArrayViewFromImage(resampled), *metadata.hu_window)


def _iter_windows(volume: np.ndarray, patch: Sequence[int]) -> Iterable[np.ndarray]:
    patch = [min(side, size // _STRIDE * _STRIDE) for size, side in zip(volume.shape, patch, strict=True)]
    if not all(patch):
        return
    starts = [range(0, size - side + 1, side) for size, side in zip(volume.shape, patch, strict=True)]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                part = volume[z : z + patch[0], y : y + patch[1], x : x + patch[2]]
                # Skip windows that contain only air.
                if part.mean() > 0.05:
                    yield np.ascontiguousarray(part, dtype=np.float32)
