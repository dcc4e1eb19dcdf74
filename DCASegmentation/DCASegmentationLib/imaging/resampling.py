"""Images onto other grids."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import SimpleITK as sitk

from .grid import Grid

Interpolator = Literal["linear", "nearest"]


def resample(
    image: sitk.Image, grid: Grid, interpolator: Interpolator = "linear", outside: float | None = None
) -> sitk.Image:
    """``image`` on ``grid``: trilinear, as float32, for CT and probabilities; nearest neighbor, same type, for labels.

    A grid made by ``model_grid`` may reach up to half of its own spacing beyond the outermost voxel centers; there the
    outermost voxels are repeated, as MONAI's ``padding_mode="border"`` does. Voxels further out get ``outside``
    (-1024 for linear, which is air, and 0 for nearest, which is background, where not given).

    Memory: the result, and a copy of ``image`` with the repeated rim where the grid reaches beyond its voxels.
    """
    linear = interpolator == "linear"
    if outside is None:
        outside = -1024.0 if linear else 0.0
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize(grid.size)
    filter_.SetOutputSpacing(grid.spacing)
    filter_.SetOutputOrigin(grid.origin)
    filter_.SetOutputDirection(grid.direction)
    filter_.SetInterpolator(sitk.sitkLinear if linear else sitk.sitkNearestNeighbor)
    filter_.SetOutputPixelType(sitk.sitkFloat32 if linear else image.GetPixelID())
    filter_.SetDefaultPixelValue(outside)
    return filter_.Execute(_with_rim(image, grid))


def _with_rim(image: sitk.Image, grid: Grid) -> sitk.Image:
    """``image`` with its outermost voxels repeated as far as ``grid`` reaches, at most half a voxel of ``grid``."""
    source = Grid.of(image)
    to_index = np.linalg.inv(source.axes * np.array(source.spacing))
    corners = (grid.corners() - np.array(source.origin)) @ to_index.T
    half_step = 0.5 * np.abs(to_index @ (grid.axes * np.array(grid.spacing))).sum(axis=1)
    last = np.array(source.size) - 1
    lower = [_rim_voxels(-low, half) for low, half in zip(corners.min(axis=0), half_step, strict=True)]
    upper = [_rim_voxels(high, half) for high, half in zip(corners.max(axis=0) - last, half_step, strict=True)]
    if not any(lower) and not any(upper):
        return image
    return sitk.ZeroFluxNeumannPad(image, lower, upper)


def _rim_voxels(reach: float, half_step: float) -> int:
    """Voxels to repeat for a grid reaching ``reach`` voxels beyond the last center: ITK itself covers half a voxel."""
    return max(0, math.ceil(min(reach, half_step) - 0.5 + 1e-3))
