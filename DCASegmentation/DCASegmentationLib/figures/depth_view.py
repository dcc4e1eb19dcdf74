"""The organs in three dimensions without OpenGL: seen from the front, shaded by the slope of their surface."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from DCASegmentationLib.figures.planes import Plane
from DCASegmentationLib.organs import Vocabulary

_LIGHT = np.array([-0.35, 0.45, 0.82])  # from above, a little from the left of the viewer
_BACKGROUND = 255


def draw_depth_view(labels: sitk.Image, vocabulary: Vocabulary, plane: Plane, pixels: tuple[int, int]) -> np.ndarray:
    """The first organ met from the front at each pixel, RGB (rows, columns, 3) uint8.

    ``plane`` is the coronal plane whose rectangle is looked through; ``pixels`` is (columns, rows).
    """
    volume, step = _seen_from_front(labels, plane, pixels)
    occupied = volume > 0
    depth = np.argmax(occupied, axis=0)
    hit = occupied.any(axis=0)
    organ = np.take_along_axis(volume, depth[None], axis=0)[0]
    view = np.full((*hit.shape, 3), _BACKGROUND, dtype=np.uint8)
    light = _shading(np.where(hit, depth, depth[hit].max(initial=0)).astype(float) * step)
    for entry in vocabulary:
        where = hit & (organ == entry.label)
        view[where] = np.clip(np.array(entry.color) * light[where][:, None], 0, 255).astype(np.uint8)
    return view


def _seen_from_front(labels: sitk.Image, plane: Plane, pixels: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Labels resampled to (depth from front to back, rows, columns); the step in depth is as large as a pixel."""
    columns, rows = pixels
    step = plane.width_mm / columns
    front, back = _depth_range(labels)
    layers = max(1, int((back - front) / step))
    first = (-plane.center[0] - plane.width_mm / 2, front, plane.center[2] + plane.height_mm / 2)
    # Columns of the direction matrix, in LPS: to the patient's left, downwards, backwards.
    directions = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
    cut = sitk.Resample(
        labels, (columns, rows, layers), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor,
        first, (step, plane.height_mm / rows, step), directions, 0.0,
    )  # fmt: skip
    return sitk.GetArrayFromImage(cut), step


def _depth_range(labels: sitk.Image) -> tuple[float, float]:
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in labels.GetSize()])).reshape(3, -1).T
    y = [labels.TransformIndexToPhysicalPoint([int(i) for i in corner])[1] for corner in corners]
    return min(y), max(y)


def _shading(depth_mm: np.ndarray) -> np.ndarray:
    """Brightness by the angle between light and surface; at the edge of an organ the slope is limited."""
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(depth_mm), 1.5))
    down, right = np.gradient(np.minimum(smooth, depth_mm + 4.0))
    normal = np.stack([np.clip(right, -3, 3), -np.clip(down, -3, 3), np.ones_like(smooth)])
    normal /= np.linalg.norm(normal, axis=0)
    return 0.35 + 0.8 * np.clip(np.tensordot(_LIGHT, normal, axes=1), 0.0, 1.0)
