"""Intensity changes that a patch may undergo: other scanners, doses and kernels.

There are no flips: left and right organs are different classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Volumes = NDArray[np.float32]


def augment_intensity(volumes: Volumes, generator: np.random.Generator) -> Volumes:
    """Windowed patches (count, 1, d, h, w) in 0..1 with other contrast, brightness, gamma, blur and noise, in 0..1."""
    changed = np.empty_like(volumes)
    for index, volume in enumerate(volumes):
        contrast = generator.uniform(0.85, 1.15)
        brightness = generator.uniform(-0.06, 0.06)
        patch = np.clip((volume - 0.5) * contrast + 0.5 + brightness, 0, 1)
        if generator.random() < 0.3:
            patch = patch ** generator.uniform(0.8, 1.25)
        if generator.random() < 0.3:
            for axis in (1, 2, 3):
                patch = _smooth(patch, axis, generator.uniform(0.0, 0.3))
        if generator.random() < 0.6:
            patch = patch + generator.standard_normal(patch.shape, dtype=np.float32) * generator.uniform(0, 0.05)
        changed[index] = np.clip(patch, 0, 1)
    return changed


def _smooth(volume: np.ndarray, axis: int, share: float) -> np.ndarray:
    """Each voxel gives ``share`` of itself to its two neighbors along ``axis``."""
    padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(volume.ndim)], mode="edge")
    size = volume.shape[axis]
    before, after = np.take(padded, range(size), axis), np.take(padded, range(2, size + 2), axis)
    return (1 - share) * volume + share / 2 * (before + after)
