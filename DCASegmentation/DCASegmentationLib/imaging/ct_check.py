"""Is this a CT in Hounsfield units, large enough to hold abdominal organs?"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .voxels import has_only_integers, value_range

_FEWEST_VOXELS = 8
_SHORTEST_MM = 30.0
_SMALLEST_SPAN_HU = 50.0
_BELOW_WATER_HU = -30.0
_FEWEST_BELOW_WATER = 0.001
_SOFT_TISSUE_HU = (-150.0, 250.0)
_FEWEST_SOFT_TISSUE = 0.03
_SAMPLES = 1_000_000

_GIVE_HU = "Give the CT in Hounsfield units as the scanner exported it."


def check_ct(image: sitk.Image, strict: bool = True) -> None:
    """Raises ImageError where ``image`` (3D, scalar, finite) cannot be a CT of abdominal organs in HU.

    Size, always: at least 8 voxels and 30 mm along every axis. A volume smaller than the model's patch is no error.

    Intensities, unless ``strict`` is False; the first that holds is reported:

    1. All voxels alike, or a span below 50 HU (normalized images, 0..1 or z-scores): organs, fat and noise span more.
    2. No fat and no air (less than 0.1 % of voxels below -30 HU). Every abdominal CT shows fat at about -100 HU, even
       cut tight around the organs. What it is instead is told by its values, for the remedy: a label map (few whole
       numbers, most neighbors equal), a gray picture (0 to 255), HU + 1024 (few values from 200 to 800, between
       lung and fat, and many from 900 to 1250, fat to enhanced organs), else an MR or another modality.
    3. Less than 3 % of voxels from -150 to 250 HU, where fat, muscle and organs lie: not HU, or rescaled twice.

    Accepted on purpose: padding below -1024 outside the field of view (any amount up to rule 3), no air at all, metal,
    and CTs clipped to a window that keeps fat, such as -200 to 300 HU.
    """
    _require_size(image)
    if not strict:
        return
    low, high = value_range(image)
    if high == low:
        raise ImageError(f"All voxels of the image have the same value ({low:g}).", "Give a CT volume.")
    if high - low < _SMALLEST_SPAN_HU:
        raise ImageError(
            f"The values of the image run from {low:g} to {high:g} only: it looks normalized, not a CT in HU.", _GIVE_HU
        )
    sample = _sample(image)
    if _share(sample < _BELOW_WATER_HU) < _FEWEST_BELOW_WATER:
        _name_the_impostor(image, sample, low, high)
    soft = _share((sample >= _SOFT_TISSUE_HU[0]) & (sample <= _SOFT_TISSUE_HU[1]))
    if soft < _FEWEST_SOFT_TISSUE:
        raise ImageError(
            f"Only {100 * soft:.1f} % of the voxels have values of fat or soft tissue (-150 to 250 HU): no CT in HU.",
            f"{_GIVE_HU} Check that the rescale intercept was applied exactly once.",
        )


def _require_size(image: sitk.Image) -> None:
    size, spacing = image.GetSize(), image.GetSpacing()
    extent = [count * step for count, step in zip(size, spacing, strict=True)]
    if min(size) < _FEWEST_VOXELS or min(extent) < _SHORTEST_MM:
        voxels = " x ".join(str(count) for count in size)
        shown = " x ".join(f"{length:.0f}" for length in extent)
        raise ImageError(
            f"The volume is too small to hold organs: {voxels} voxels, {shown} mm.",
            f"Give the whole CT: at least {_FEWEST_VOXELS} voxels and {_SHORTEST_MM:.0f} mm along every axis.",
        )


def _name_the_impostor(image: sitk.Image, sample: np.ndarray, low: float, high: float) -> NoReturn:
    values = f"values from {low:g} to {high:g}"
    if low >= 0 and _looks_like_labels(image, sample):
        raise ImageError(f"The image looks like a label map ({values}), not like a CT.", "Give the CT itself.")
    if low >= 0 and high <= 255:
        raise ImageError(f"The image looks like a gray picture ({values}), not like a CT in HU.", _GIVE_HU)
    between, tissue = _share((sample >= 200) & (sample <= 800)), _share((sample >= 900) & (sample <= 1250))
    if tissue >= 0.1 and between < 0.5 * tissue:
        raise ImageError(
            f"The image looks like HU + 1024 ({values}, soft tissue near 1060).",
            "Subtract 1024 from every voxel, or export it with its rescale intercept applied.",
        )
    raise ImageError(
        f"The image shows neither fat nor air ({values}): it looks like an MR or another modality, not like a CT.",
        _GIVE_HU,
    )


def _looks_like_labels(image: sitk.Image, sample: np.ndarray) -> bool:
    if not has_only_integers(image) or np.unique(sample).size > 256:
        return False
    middle = sitk.GetArrayViewFromImage(image)[image.GetDepth() // 2]
    return _share(middle[:, 1:] == middle[:, :-1]) > 0.8


def _sample(image: sitk.Image) -> np.ndarray:
    """At most about a million voxels, evenly taken: shares need no more, and a large CT no second copy."""
    array = sitk.GetArrayViewFromImage(image)
    step = max(1, round((array.size / _SAMPLES) ** (1 / 3)))
    return np.ascontiguousarray(array[::step, ::step, ::step])


def _share(condition: np.ndarray) -> float:
    return float(np.count_nonzero(condition)) / condition.size
