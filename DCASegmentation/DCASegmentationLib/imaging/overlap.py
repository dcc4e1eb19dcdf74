"""How far two label maps agree."""

from __future__ import annotations

import numpy as np


def dice_by_label(predicted: np.ndarray, truth: np.ndarray, n_labels: int) -> np.ndarray:
    """Dice of the labels 1 to ``n_labels``, float64 (n_labels,); NaN where neither map has the label.

    Both are integer arrays of one shape with labels 0 to ``n_labels``. Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"label maps of shapes {predicted.shape} and {truth.shape} cannot be compared")
    channels = n_labels + 1
    sizes = np.bincount(predicted.ravel(), minlength=channels) + np.bincount(truth.ravel(), minlength=channels)
    both = np.bincount(truth[predicted == truth], minlength=channels)
    with np.errstate(invalid="ignore"):
        return (2 * both / sizes)[1:]
