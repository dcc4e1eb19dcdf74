"""Noise of a CT scanner."""

from __future__ import annotations

import numpy as np

from .fields import Array

_KERNEL_MM = 0.9
"""SD of the reconstruction kernel that correlates the noise of neighbouring voxels."""


def add_noise(hu: Array, spacing: tuple[float, float, float], sd: float, random: np.random.Generator) -> Array:
    """CT numbers (z, y, x) with Gaussian noise of this SD (HU) per voxel, correlated as by a reconstruction kernel."""
    if sd <= 0:
        return hu
    noise = random.standard_normal(hu.shape, dtype=np.float32)
    scale = sd
    for axis, mm in zip((2, 1, 0), spacing, strict=True):
        # A kernel (w, 1 - 2 w, w) has the variance 2 w, in voxels squared.
        w = float(min((_KERNEL_MM / mm) ** 2 / 2, 0.25))
        blurred = (1 - 2 * w) * noise
        moved = np.moveaxis(blurred, axis, 0)
        source = np.moveaxis(noise, axis, 0)
        moved[1:] += w * source[:-1]
        moved[0] += w * source[0]
        moved[:-1] += w * source[1:]
        moved[-1] += w * source[-1]
        noise = blurred
        scale /= np.sqrt((1 - 2 * w) ** 2 + 2 * w**2)
    noise *= np.float32(scale)
    noise += hu
    return noise
