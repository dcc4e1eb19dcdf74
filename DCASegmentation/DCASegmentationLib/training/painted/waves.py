"""Smooth random fields on a grid: cubic B-splines through random control points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .volumes import Field, Spacing


def spline_weights(points: NDArray[np.float64], step: float) -> tuple[Field, int]:
    """Weights (points, controls) of uniform cubic B-splines at positions (mm, from 0 up), and the number of controls,
    which lie ``step`` mm apart, the first one step before 0."""
    place = points / step
    left = np.floor(place).astype(int)
    t = place - left
    count = int(left.max()) + 4
    weights = np.zeros((len(points), count), np.float32)
    rows = np.arange(len(points))
    for shift, weight in enumerate(
        ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    ):
        weights[rows, left + shift] = weight
    return weights, count


def smooth_noise(shape: tuple[int, int, int], spacing: Spacing, step_mm: float, random: np.random.Generator) -> Field:
    """Noise (z, y, x) of mean 0 and SD 1 that varies over about ``step_mm``."""
    places = (np.arange(n, dtype=np.float64) * step for n, step in zip(shape, spacing[::-1], strict=True))
    axes = [spline_weights(place, step_mm) for place in places]
    controls = random.standard_normal([count for _, count in axes], dtype=np.float32)
    # The mean square of a cubic B-spline's weights is 0.479 along each axis.
    return upsampled(controls, [weights for weights, _ in axes]) * np.float32(0.479**-1.5)


def upsampled(controls: Field, weights: list[Field]) -> Field:
    """``controls`` (z, y, x) brought to points by a matrix (points, controls) for each axis."""
    result = np.tensordot(weights[0], controls, axes=1)
    result = np.matmul(weights[1], result)
    return np.matmul(result, weights[2].T)
