"""Spatial augmentation: patches are scaled, rotated and elastically deformed a little.

Nothing is mirrored, because left and right organs are different classes. Distances are in mm, so the variation is the
same on any grid, and a rotation remains one if voxels are not cubes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

PROBABILITY = 0.75
"""Of a patch being augmented. The others keep the sharpness of the CT, which interpolation reduces."""

# Chosen before any result was known: the differences between adults, and between positions on a table.
_ROTATION = 0.2  # radians, about each axis
_SCALE = 1.25
_AXIS_SCALE = 1.1  # of each axis on top of _SCALE
_BEND = 0.03  # standard deviation of the shift of a control point, as a fraction of the patch's side
_CONTROL_POINTS = 5  # along each axis

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class PatchCoordinates:
    """For each voxel of a patch, the position (3, depth, height, width) in the volume that it shows, in voxels."""

    positions: NDArray[np.float32]

    @classmethod
    def draw(
        cls,
        center: NDArray[np.floating],
        shape: Shape,
        voxel_size: tuple[float, float, float],
        random: np.random.Generator,
    ) -> PatchCoordinates:
        """Draw a scaling, rotation and bending about ``center`` (voxels) for a patch of ``shape`` voxels.

        ``voxel_size`` is (depth, height, width) in mm.
        """
        size = np.asarray(voxel_size)
        scale = _log_uniform(_SCALE, random) * np.array([_log_uniform(_AXIS_SCALE, random) for _ in range(3)])
        rotation = _make_rotation_matrix(random.uniform(-_ROTATION, _ROTATION, 3))
        # From an offset in the patch to one in the volume, both in voxels.
        matrix = (rotation * scale) * size / size[:, None]
        # The same smooth shift in mm along all axes, whatever the shape of the patch.
        deviation = _BEND * float(np.min(np.asarray(shape) * size))
        shifts = random.normal(0.0, deviation, (3, *(_CONTROL_POINTS,) * 3)) / size[:, None, None, None]
        weights = [_compute_bezier_weights(n) for n in shape]
        positions = np.einsum("iabc,za,yb,xc->izyx", shifts.astype(np.float32), *weights, optimize=True)
        for axis, n in enumerate(shape):
            offsets = (np.arange(n) - (n - 1) / 2).reshape([-1 if a == axis else 1 for a in range(3)])
            for row in range(3):
                positions[row] += (matrix[row, axis] * offsets).astype(np.float32)
        positions += np.asarray(center, np.float32)[:, None, None, None]
        return cls(positions)

    def sample(self, volume: NDArray, linear: bool, outside: float, repeat_ends: bool) -> NDArray:
        """Interpolate ``volume`` at these positions, or take the nearest voxel if not ``linear``.

        ``outside`` is the value of positions outside the volume. ``repeat_ends`` repeats its end slices instead. The
        result is float32 if ``linear``, otherwise of the volume's type.
        """
        positions = self.positions
        last = np.asarray(volume.shape) - 1
        if repeat_ends:
            positions = np.concatenate([np.clip(positions[:1], 0, last[0]), positions[1:]])
        # Convert only the part of the volume that is needed.
        low = np.clip(np.floor(positions.min(axis=(1, 2, 3))).astype(int) - 1, 0, last)
        high = np.clip(np.ceil(positions.max(axis=(1, 2, 3))).astype(int) + 1, low, last)
        part = volume[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))].astype(np.float32) - outside
        # grid_sample has x first; -1 and 1 are the outer faces of the first and last voxel.
        grid = np.stack([(2 * (positions[a] - low[a]) + 1) / part.shape[a] - 1 for a in (2, 1, 0)], axis=-1)
        sampled = functional.grid_sample(
            torch.from_numpy(part)[None, None],
            torch.from_numpy(grid.astype(np.float32))[None],
            mode="bilinear" if linear else "nearest",
            align_corners=False,
        )
        result = sampled[0, 0].numpy() + np.float32(outside)
        return result if linear else result.astype(volume.dtype)


def _log_uniform(limit: float, random: np.random.Generator) -> float:
    return float(np.exp(random.uniform(-1, 1) * np.log(limit)))


def _make_rotation_matrix(angles: NDArray[np.floating]) -> NDArray[np.float64]:
    """The matrix that rotates by ``angles`` (radians) about the first, second and third axis, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[other, one] = np.sin(angle)
        turn[one, other] = -turn[other, one]
        matrix = turn @ matrix
    return matrix


@lru_cache(maxsize=16)
def _compute_bezier_weights(count: int) -> NDArray[np.float32]:
    """Weights (count, control points) of a Bezier curve at ``count`` equal steps along a side."""
    degree = _CONTROL_POINTS - 1
    along = np.linspace(0, 1, count)[:, None]
    point = np.arange(_CONTROL_POINTS)
    binomials = np.array([comb(degree, index) for index in point])
    return (binomials * along**point * (1 - along) ** (degree - point)).astype(np.float32)
