"""The views of a case drawn from the arrays alone, where no OpenGL or no slicer-core is present."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from DCASegmentationLib.figures.palette import EXPERTS, color_table
from DCASegmentationLib.figures.planes import Plane
from DCASegmentationLib.figures.slices import sample
from DCASegmentationLib.organs import Vocabulary

_LOW_HU, _HIGH_HU = -160.0, 240.0
_AIR = -1024.0


def draw_ct(ct: sitk.Image, plane: Plane, pixels: tuple[int, int]) -> np.ndarray:
    """The CT in the abdominal window, RGB (rows, columns, 3) uint8."""
    values = sample(ct, plane, pixels, "linear", _AIR).astype(np.float32)
    gray = np.clip((values - _LOW_HU) / (_HIGH_HU - _LOW_HU), 0.0, 1.0) * 255.0
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def add_map(view: np.ndarray, image: sitk.Image, plane: Plane, colors: str, opacity: float) -> np.ndarray:
    """``view`` with a map of values from 0 to 1 laid over it in the color map ``colors``."""
    values = sample(image, plane, _size(view), "linear", -1.0)
    table = color_table(colors)
    index = np.clip(np.rint(values * (len(table) - 1)), 0, len(table) - 1).astype(int)
    return _blend(view, table[index], values >= 0.0, opacity)


def add_experts(view: np.ndarray, deciding_expert: sitk.Image, plane: Plane, opacity: float) -> np.ndarray:
    """``view`` with each voxel that belongs to an organ tinted in the color of the expert that decided it."""
    values = sample(deciding_expert, plane, _size(view), "nearest", 0.0)
    for value, _, color in EXPERTS:
        view = _blend(view, np.array(color, dtype=float), values == value, opacity)
    return view


def add_organs(
    view: np.ndarray,
    labels: sitk.Image,
    vocabulary: Vocabulary,
    plane: Plane,
    fill: float,
    thickness: int,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """``view`` with the organs outlined, ``thickness`` pixels wide, and filled with the opacity ``fill``.

    Each in its own color, or all in ``color``.
    """
    values = sample(labels, plane, _size(view), "nearest", 0.0)
    for organ in vocabulary:
        inside = values == organ.label
        if not inside.any():
            continue
        paint = np.array(color or organ.color, dtype=float)
        view = _blend(view, paint, inside, fill)
        view = _blend(view, paint, inside & ~_eroded(inside, thickness), 1.0)
    return view


def _size(view: np.ndarray) -> tuple[int, int]:
    return view.shape[1], view.shape[0]


def _blend(view: np.ndarray, color: np.ndarray, where: np.ndarray, opacity: float) -> np.ndarray:
    mixed = view * (1.0 - opacity) + color * opacity
    return np.where(where[..., None], mixed, view).astype(np.uint8)


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        rim = np.pad(mask, 1)
        mask = rim[1:-1, 1:-1] & rim[:-2, 1:-1] & rim[2:, 1:-1] & rim[1:-1, :-2] & rim[1:-1, 2:]
    return mask
