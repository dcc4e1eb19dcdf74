"""A plane through an image as a two-dimensional array, seen as on the screen."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from DCASegmentationLib.figures.planes import SCREEN_AXES, Plane

_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}


def sample(image: sitk.Image, plane: Plane, pixels: tuple[int, int], interpolation: str, outside: float) -> np.ndarray:
    """Values of ``image`` on ``plane`` as an array (rows, columns), first row on top.

    ``pixels`` is (columns, rows), ``interpolation`` "linear" or "nearest"; beyond the image lies ``outside``.
    """
    columns, rows = pixels
    right, up, _ = SCREEN_AXES[plane.orientation].T * np.array([-1.0, -1.0, 1.0])  # RAS to LPS
    across, down = plane.width_mm / columns, plane.height_mm / rows
    center = np.array(plane.center) * np.array([-1.0, -1.0, 1.0])
    first = center - right * across * (columns - 1) / 2 + up * down * (rows - 1) / 2
    directions = np.stack([right, -up, np.cross(right, -up)], axis=1)
    cut = sitk.Resample(
        image, (columns, rows, 1), sitk.Transform(3, sitk.sitkIdentity), _INTERPOLATORS[interpolation],
        first.tolist(), (across, down, 1.0), directions.ravel().tolist(), outside,
    )  # fmt: skip
    return sitk.GetArrayFromImage(cut)[0]
