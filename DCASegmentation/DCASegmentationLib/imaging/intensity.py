"""HU to network input."""

from __future__ import annotations

import numpy as np


def window(array: np.ndarray, low_hu: float, high_hu: float) -> np.ndarray:
    """``array`` (HU, any shape) scaled so that ``low_hu`` becomes 0 and ``high_hu`` 1, clipped to 0..1, as float32.

    Equals MONAI's ``ScaleIntensityRange(low_hu, high_hu, 0, 1, clip=True)``. ``array`` itself stays as it is.
    Raises ValueError where the window has no width.
    """
    if not low_hu < high_hu:
        raise ValueError(f"the window {low_hu} to {high_hu} HU is empty")
    scaled = array.astype(np.float32)
    scaled -= np.float32(low_hu)
    scaled /= np.float32(high_hu - low_hu)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def standardize(array: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """(``array`` - ``mean``) / ``deviation`` as float32, zeros where there is no deviation.

    ``array`` itself stays as it is.
    """
    if deviation <= 0:
        return np.zeros(array.shape, np.float32)
    scaled = array.astype(np.float32)
    scaled -= np.float32(mean)
    scaled /= np.float32(deviation)
    return scaled
