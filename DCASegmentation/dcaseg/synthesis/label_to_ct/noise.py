"""Random numbers that depend on a position and a seed alone, so that any part of a volume can be made by itself.

Integers are hashed (32-bit mixing, as in counter-based generators) and added up to nearly Gaussian numbers: the same
on every device and in any order, without a generator's state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The mean square of a uniform cubic B-spline's weights is 0.479 along each axis.
_SPLINE_SD = 0.479**1.5
# Four uniform 16-bit numbers: mean and SD of their sum.
_SUM_MEAN, _SUM_SD = 2 * 65535.0, 65536.0 / 3**0.5


def _mix(values: Tensor) -> Tensor:
    """A permutation of 32-bit integers in which each bit depends on all (constants of the "lowbias32" hash)."""
    values = values ^ ((values >> 16) & 0xFFFF)
    values = values * 0x7FEB352D
    values = values ^ ((values >> 15) & 0x1FFFF)
    values = values * -0x7B935975  # 0x846CA68B as a signed number.
    return values ^ ((values >> 16) & 0xFFFF)


def hashed(seed: int, axes: Sequence[NDArray[np.int64]], device: torch.device) -> Tensor:
    """Random int32 at the lattice points of ``axes`` (their integer coordinates, one array for each dimension)."""
    state = torch.tensor(_signed(seed), dtype=torch.int32, device=device)
    state = _mix(state)
    for axis in axes:
        coordinates = torch.from_numpy(axis.astype(np.int32)).to(device)
        # Multiples of the golden ratio keep neighbors apart before they are mixed.
        state = _mix(state[..., None] + coordinates * -0x61C88647)
    return state


def _signed(seed: int) -> int:
    return ((seed & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def normal(seed: int, axes: Sequence[NDArray[np.int64]], device: torch.device) -> Tensor:
    """Nearly Gaussian float32 numbers of mean 0 and SD 1 at the lattice points of ``axes``."""
    first = hashed(seed, axes, device)
    second = (first ^ ((first >> 15) & 0x1FFFF)) * 0x2C1B3C6D
    second = second ^ ((second >> 12) & 0xFFFFF)
    total = (first & 0xFFFF) + ((first >> 16) & 0xFFFF) + (second & 0xFFFF) + ((second >> 16) & 0xFFFF)
    return (total.to(torch.float32) - _SUM_MEAN) * (1.0 / _SUM_SD)


def smooth_noise(
    seed: int, axes_mm: Sequence[NDArray[np.float64]], step_mm: float, device: torch.device, channels: int = 1
) -> Tensor:
    """Noise (channels, z, y, x) of mean 0 and SD 1 that varies over about ``step_mm``.

    ``axes_mm``: coordinates in mm along z, y and x, in any order and spacing. The value at a point depends on nothing
    but its coordinates, ``seed``, ``step_mm`` and the channel: cubic B-splines through random control points.
    """
    splines = [_spline(axis / step_mm) for axis in axes_mm]
    controls = torch.stack(
        [normal(seed * 31 + channel, [nodes for nodes, _, _ in splines], device) for channel in range(channels)]
    )
    # Along x first and along z last: then the large steps copy whole rows and planes.
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


def _spline(place: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Control points that positions (in steps) need, the index of each position's first, and its four weights."""
    left = np.floor(place).astype(np.int64)
    t = place - left
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    first = int(left.min()) - 1
    nodes = np.arange(first, int(left.max()) + 3)
    return nodes, left - 1 - first, weights.astype(np.float32)
