"""Random numbers that depend only on position and seed, so that any part of a volume can be computed separately.

Integers are hashed (32-bit mixing, as in counter-based generators) and summed to nearly Gaussian numbers. They are the
same on every device and in any order, and need no generator state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The mean square of a uniform cubic B-spline's weights is 0.479 along each axis.
_SPLINE_SD = 0.479**1.5
# Mean and SD of the sum of four uniform 16-bit numbers.
_SUM_MEAN, _SUM_SD = 2 * 65535.0, 65536.0 / 3**0.5


def _mix(values: Tensor) -> Tensor:
    """A permutation of 32-bit integers in which each bit depends on all bits (constants of the "lowbias32" hash)."""
    values = values ^ ((values >> 16) & 0xFFFF)
    values = values * 0x7FEB352D
    values = values ^ ((values >> 15) & 0x1FFFF)
    values = values * -0x7B935975  # 0x846CA68B as a signed number.
    return values ^ ((values >> 16) & 0xFFFF)


def hash_coordinates(seed: int, axes: Sequence[NDArray[np.int64]], device: torch.device) -> Tensor:
    """Random int32 at the lattice points of ``axes``, one array of integer coordinates for each dimension."""
    state = torch.tensor(_to_int32(seed), dtype=torch.int32, device=device)
    state = _mix(state)
    for axis in axes:
        coordinates = torch.from_numpy(axis.astype(np.int32)).to(device)
        # Multiples of the golden ratio separate neighbors before mixing.
        state = _mix(state[..., None] + coordinates * -0x61C88647)
    return state


def _to_int32(seed: int) -> int:
    return ((seed & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def sample_normal(seed: int, axes: Sequence[NDArray[np.int64]], device: torch.device) -> Tensor:
    """Nearly Gaussian float32 numbers with mean 0 and SD 1 at the lattice points of ``axes``."""
    first = hash_coordinates(seed, axes, device)
    second = (first ^ ((first >> 15) & 0x1FFFF)) * 0x2C1B3C6D
    second = second ^ ((second >> 12) & 0xFFFFF)
    total = (first & 0xFFFF) + ((first >> 16) & 0xFFFF) + (second & 0xFFFF) + ((second >> 16) & 0xFFFF)
    return (total.to(torch.float32) - _SUM_MEAN) * (1.0 / _SUM_SD)


def sample_smooth_noise(
    seed: int, axes_mm: Sequence[NDArray[np.float64]], step_mm: float, device: torch.device, channels: int = 1
) -> Tensor:
    """Noise (channels, z, y, x) with mean 0 and SD 1 that varies over about ``step_mm``.

    ``axes_mm`` are coordinates in mm along z, y and x, in any order and spacing. The noise is a cubic B-spline with
    random control points; a value depends only on its coordinates, ``seed``, ``step_mm`` and the channel.
    """
    splines = [_compute_spline_weights(axis / step_mm) for axis in axes_mm]
    controls = torch.stack(
        [sample_normal(seed * 31 + channel, [nodes for nodes, _, _ in splines], device) for channel in range(channels)]
    )
    # x first and z last, so that the large steps copy whole rows and planes.
    for dimension, (_, left, weights) in list(enumerate(splines, start=1))[::-1]:
        index = torch.from_numpy(left).to(device)
        shape = [1, 1, 1, 1]
        shape[dimension] = len(left)
        taps = torch.from_numpy(weights).to(device)
        total = controls.index_select(dimension, index) * taps[0].view(shape)
        for tap in range(1, 4):
            total += controls.index_select(dimension, index + tap) * taps[tap].view(shape)
        controls = total
    return controls * (1.0 / _SPLINE_SD)


def _compute_spline_weights(
    positions: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The control points that ``positions`` (in steps) need, the index of the first for each, and its four weights."""
    left = np.floor(positions).astype(np.int64)
    t = positions - left
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    first = int(left.min()) - 1
    nodes = np.arange(first, int(left.max()) + 3)
    return nodes, left - 1 - first, weights.astype(np.float32)
