"""Images onto other grids, with an anti-aliasing filter where the other grid is coarser."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import SimpleITK as sitk

from .grid import Grid

Interpolator = Literal["linear", "nearest"]


# The Gaussian of an anti-aliasing filter is cut off here, in standard deviations.
_TRUNCATE = 4.0
# How far (in index units) the axes of two grids may part for them to count as permuted and flipped only.
_ALIGNED = 1e-4


def anti_aliasing_sigma(spacing: float, target_spacing: float) -> float:
    """The standard deviation, in voxels of ``spacing`` (mm), of the filter before sampling at ``target_spacing``.

    (factor - 1) / 2 for a factor above 1, else 0: the convention of scikit-image's and MONAI's resizing.
    """
    return max(0.0, (target_spacing / spacing - 1) / 2)


def anti_aliasing_kernel(sigma: float) -> np.ndarray:
    """The weights (odd length) of a Gaussian of ``sigma`` voxels, which sum to one."""
    reach = int(_TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    return weights / weights.sum()


def resample(
    image: sitk.Image,
    grid: Grid,
    interpolator: Interpolator = "linear",
    outside: float | None = None,
    anti_aliasing: bool = False,
) -> sitk.Image:
    """``image`` on ``grid``: trilinear, as float32, for CT and probabilities; nearest neighbor, same type, for labels.

    A grid made by ``model_grid`` may reach up to half of its own spacing beyond the outermost voxel centers; there the
    outermost voxels are repeated, as MONAI's ``padding_mode="border"`` does. Voxels further out get ``outside``
    (-1024 for linear, which is air, and 0 for nearest, which is background, where not given).

    ``anti_aliasing`` smooths along each axis that becomes coarser (``anti_aliasing_sigma``) before the linear
    interpolation, with the outermost voxels repeated. Without it the noise of a fine CT stays on a coarse grid: linear
    interpolation looks at two voxels, however many lie between two samples. It needs a grid like those of
    ``model_grid``, whose axes are permuted and flipped, not rotated; raises ValueError for another one or for labels.

    Memory: the result, and a copy of ``image`` with the repeated rim where the grid reaches beyond its voxels; with
    anti-aliasing, the planes of ``image`` at the in-plane size of ``grid``.
    """
    linear = interpolator == "linear"
    if anti_aliasing:
        if not linear:
            raise ValueError("anti-aliasing is for images, not for labels")
        return _resample_separably(image, grid)
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


def _resample_separably(image: sitk.Image, grid: Grid) -> sitk.Image:
    """``image`` (float32) on ``grid``: each axis filtered where it becomes coarser, then interpolated linearly.

    Both steps are linear and act on one axis at a time, so a matrix for each axis does both.
    """
    source = Grid.of(image)
    to_index = np.linalg.inv(source.axes * np.array(source.spacing))
    steps = to_index @ (grid.axes * np.array(grid.spacing))
    first = to_index @ (np.array(grid.origin) - np.array(source.origin))
    taken = [int(axis) for axis in np.abs(steps).argmax(axis=0)]
    aligned = np.zeros((3, 3), bool)
    aligned[taken, range(3)] = True
    if sorted(taken) != [0, 1, 2] or np.abs(steps[~aligned]).max() * max(grid.size) > _ALIGNED * max(source.size):
        raise ValueError("anti-aliasing needs a grid whose axes are those of the image, permuted or flipped")
    # One matrix for each axis of the image, from its voxels to those of the grid's axis along it.
    matrices: list[np.ndarray] = [np.empty(0)] * 3
    for target, axis in enumerate(taken):
        positions = first[axis] + steps[axis, target] * np.arange(grid.size[target])
        factor = grid.spacing[target] / source.spacing[axis]
        matrices[axis] = _axis_matrix(source.size[axis], positions, anti_aliasing_sigma(1.0, factor))
    along_x, along_y, along_z = matrices
    array = sitk.GetArrayViewFromImage(image)
    planes = np.empty((len(array), len(along_y), len(along_x)), np.float32)
    for z, plane in enumerate(array):
        np.matmul(along_y @ plane.astype(np.float32), along_x.T, out=planes[z])
    filtered = np.tensordot(along_z, planes, axes=(1, 0))
    # From the image's array axes (z, y, x) to the grid's.
    order = [2 - taken[2 - axis] for axis in range(3)]
    return grid.image_of(np.ascontiguousarray(filtered.transpose(order)))


def _axis_matrix(size: int, positions: np.ndarray, sigma: float) -> np.ndarray:
    """Weights (position, voxel), float32, that filter an axis of ``size`` voxels and interpolate it at ``positions``.

    Voxels beyond either end repeat the outermost one.
    """
    kernel = anti_aliasing_kernel(sigma) if sigma > 0 else np.ones(1)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    lower = np.floor(positions).astype(int)
    share = positions - lower
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))[:, None]
    for neighbor, weight in ((lower, 1 - share), (lower + 1, share)):
        # The filter is applied to each voxel of the image, then interpolated: a neighbor beyond the end is the last.
        voxels = np.clip(np.clip(neighbor, 0, size - 1)[:, None] + offsets, 0, size - 1)
        np.add.at(matrix, (np.broadcast_to(rows, voxels.shape), voxels), weight[:, None] * kernel)
    return matrix.astype(np.float32)
