"""Resampling of images to other grids, with an anti-aliasing filter if the other grid is coarser."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import SimpleITK as sitk

from .grid import Grid

Interpolator = Literal["linear", "nearest"]


# Where the Gaussian of the anti-aliasing filter is truncated, in standard deviations.
_TRUNCATE = 4.0
# The largest deviation (in index units) between the axes of two grids that are only permuted and flipped.
_ALIGNED = 1e-4
# Planes that the anti-aliasing filter processes at once.
_PLANES_AT_ONCE = 16


def anti_aliasing_sigma(spacing: float, target_spacing: float) -> float:
    """The standard deviation of the filter before sampling at ``target_spacing``, in voxels of ``spacing`` (both mm).

    It is (factor - 1) / 2 for a factor above 1, else 0, as in scikit-image's and MONAI's resizing.
    """
    return max(0.0, (target_spacing / spacing - 1) / 2)


def anti_aliasing_kernel(sigma: float) -> np.ndarray:
    """The weights (1D, of odd length) of a Gaussian with a standard deviation of ``sigma`` voxels; they sum to one."""
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
    """Resample ``image`` to ``grid``.

    Linear interpolation, for CT and probabilities, returns float32. Nearest neighbor, for labels, keeps the type.

    A grid from ``make_model_grid`` may reach up to half of its own spacing beyond the outermost voxel centers; the
    outermost voxels are repeated there, as MONAI's ``padding_mode="border"`` does. Voxels further out get ``outside``
    (by default -1024, air, for linear and 0, background, for nearest).

    ``anti_aliasing`` smooths along each axis that becomes coarser (see ``anti_aliasing_sigma``) before the linear
    interpolation, with the outermost voxels repeated. Without it, the noise of a fine CT remains on a coarse grid, as
    linear interpolation uses only two voxels, however many lie between two samples. It needs a grid whose axes are
    those of the image, permuted and flipped but not rotated, as from ``make_model_grid``; for another grid, and for
    labels, it raises ValueError.

    Memory: the result, and a copy of ``image`` with the repeated border if the grid reaches beyond its voxels. With
    anti-aliasing: the planes of ``image`` at the in-plane size of ``grid``, and a few of its planes as float32.
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
    return filter_.Execute(_pad_border(image, grid))


def _pad_border(image: sitk.Image, grid: Grid) -> sitk.Image:
    """``image`` with its outermost voxels repeated as far as ``grid`` reaches, at most half a voxel of ``grid``."""
    source = Grid.from_image(image)
    to_index = np.linalg.inv(source.axes * np.array(source.spacing))
    corners = (grid.get_corners() - np.array(source.origin)) @ to_index.T
    half_step = 0.5 * np.abs(to_index @ (grid.axes * np.array(grid.spacing))).sum(axis=1)
    last = np.array(source.size) - 1
    lower = [_count_border_voxels(-low, half) for low, half in zip(corners.min(axis=0), half_step, strict=True)]
    upper = [_count_border_voxels(high, half) for high, half in zip(corners.max(axis=0) - last, half_step, strict=True)]
    if not any(lower) and not any(upper):
        return image
    return sitk.ZeroFluxNeumannPad(image, lower, upper)


def _count_border_voxels(reach: float, half_step: float) -> int:
    """Voxels to repeat if a grid reaches ``reach`` voxels beyond the last center. ITK itself covers half a voxel."""
    return max(0, math.ceil(min(reach, half_step) - 0.5 + 1e-3))


def _resample_separably(image: sitk.Image, grid: Grid) -> sitk.Image:
    """``image`` on ``grid`` (float32): each axis is filtered if it becomes coarser, then interpolated linearly.

    Both steps are linear and act on one axis at a time, so one matrix per axis performs both.
    """
    source = Grid.from_image(image)
    to_index = np.linalg.inv(source.axes * np.array(source.spacing))
    steps = to_index @ (grid.axes * np.array(grid.spacing))
    first = to_index @ (np.array(grid.origin) - np.array(source.origin))
    source_axes = [int(axis) for axis in np.abs(steps).argmax(axis=0)]
    aligned = np.zeros((3, 3), bool)
    aligned[source_axes, range(3)] = True
    deviation = np.abs(steps[~aligned]).max() * max(grid.size)
    if sorted(source_axes) != [0, 1, 2] or deviation > _ALIGNED * max(source.size):
        raise ValueError("anti-aliasing needs a grid whose axes are those of the image, permuted or flipped")
    # For each axis of the image, the matrix from its voxels to those along the corresponding axis of the grid.
    matrices: list[np.ndarray] = [np.empty(0)] * 3
    for target, axis in enumerate(source_axes):
        positions = first[axis] + steps[axis, target] * np.arange(grid.size[target])
        factor = grid.spacing[target] / source.spacing[axis]
        matrices[axis] = _make_axis_matrix(source.size[axis], positions, anti_aliasing_sigma(1.0, factor))
    along_x, along_y, along_z = matrices
    planes = _filter_planes(sitk.GetArrayViewFromImage(image), along_y, along_x)
    filtered = np.tensordot(along_z, planes, axes=(1, 0))
    # From the array axes (z, y, x) of the image to those of the grid.
    order = [2 - source_axes[2 - axis] for axis in range(3)]
    return grid.make_image(np.ascontiguousarray(filtered.transpose(order)))


def _filter_planes(array: np.ndarray, along_y: np.ndarray, along_x: np.ndarray) -> np.ndarray:
    """Each plane of ``array`` (z, y, x), with the matrices applied to its columns and its rows, float32.

    In a few large products: each one waits for the other threads of OpenBLAS, on a busy computer for a tenth of a
    second.
    """
    planes = np.empty((len(array), len(along_y), len(along_x)), np.float32)
    for first in range(0, len(array), _PLANES_AT_ONCE):
        block = array[first : first + _PLANES_AT_ONCE].transpose(1, 0, 2).astype(np.float32, order="C")
        columns = (along_y @ block.reshape(len(block), -1)).reshape(-1, array.shape[2])
        part = (columns @ along_x.T).reshape(len(along_y), -1, len(along_x))
        planes[first : first + _PLANES_AT_ONCE] = part.transpose(1, 0, 2)
    return planes


def _make_axis_matrix(size: int, positions: np.ndarray, sigma: float) -> np.ndarray:
    """The weights (position, voxel), float32, that filter an axis of ``size`` voxels and sample it at ``positions``.

    Beyond either end, the outermost voxel is repeated.
    """
    kernel = anti_aliasing_kernel(sigma) if sigma > 0 else np.ones(1)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    lower = np.floor(positions).astype(int)
    share = positions - lower
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))[:, None]
    for neighbor, weight in ((lower, 1 - share), (lower + 1, share)):
        # The filter is applied to the voxels of the image before interpolation: a neighbor beyond the end is clamped.
        voxels = np.clip(np.clip(neighbor, 0, size - 1)[:, None] + offsets, 0, size - 1)
        np.add.at(matrix, (np.broadcast_to(rows, voxels.shape), voxels), weight[:, None] * kernel)
    return matrix.astype(np.float32)
