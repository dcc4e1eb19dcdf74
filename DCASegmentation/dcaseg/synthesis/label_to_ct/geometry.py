"""Maps points of a synthetic body to the label map, as a smooth field that can be evaluated anywhere.

A point of the body (mm from the middle of the trunk; x, y, z) is rotated and scaled, deformed by random splines, moved
toward other anatomies, and displaced around organs that grow or move. This is computed at nodes 9 mm apart, at
multiples of 9 mm, with linear interpolation between them. The result for a point does not depend on the block it is
requested in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..phantom.shapes import compute_rotation_matrix
from .anatomy import Anatomy
from .noise import sample_smooth_noise
from .recipe import Deformation

# Lengths (mm) of the random deformations.
ELASTIC_MM = (130.0, 60.0, 30.0)
NODE_MM = 9.0
# For the inverse, which is only needed to find organs with an accuracy of a few mm.
_COARSE_MM = 27.0
_VOLUME_POINTS = 40

Axis = NDArray[np.float64]


@dataclass(frozen=True)
class Warp:
    """Displacements from an anatomy toward another.

    ``field`` is float16 (3, z, y, x) with x, y, z in mm, on a lattice with ``step`` mm spacing that starts at ``start``
    (x, y, z) in mm of the anatomy's label map.
    """

    field: NDArray[np.float16]
    step: float
    start: tuple[float, float, float]


class Nodes(NamedTuple):
    """Positions (3, z, y, x) in mm in the label map at nodes, and the index of the ``first`` node (z, y, x)."""

    first: tuple[int, int, int]
    values: Tensor


class DeviceAnatomy:
    """The arrays of an anatomy on a device: ``tissues`` (flattened), fields of ``changes``, and ``warps`` by name."""

    def __init__(self, anatomy: Anatomy, warps: Mapping[str, Warp], device: torch.device) -> None:
        self.anatomy = anatomy
        self.tissues = torch.from_numpy(anatomy.tissues.reshape(-1)).to(device)
        self.changes = {name: torch.from_numpy(change.field).to(device) for name, change in anatomy.changes.items()}
        self.warps = {name: (torch.from_numpy(warp.field).to(device), warp) for name, warp in warps.items()}


class Geometry:
    """The geometry of one recipe's body on one device."""

    def __init__(self, resident: DeviceAnatomy, deformation: Deformation, seed: int) -> None:
        self._anatomy, self._deformation, self._seed = resident.anatomy, deformation, seed
        self._changes = resident.changes
        self.device = resident.tissues.device
        self.matrix = compute_rotation_matrix(deformation.degrees).T / np.array(deformation.scale)[:, None]
        # Fields, their warps, and their weights.
        self._warps = [(*resident.warps[name], weight) for name, weight in sorted(deformation.blend.items()) if weight]

    def compute_nodes(self, z: Axis, y: Axis, x: Axis) -> Nodes:
        """The nodes that are needed for points with these coordinates (mm) of the body."""
        first, axes = [], []
        for axis in (z, y, x):
            low, high = np.floor(axis.min() / NODE_MM), np.floor(axis.max() / NODE_MM) + 1
            first.append(int(low))
            axes.append(np.arange(low, high + 1) * NODE_MM)
        return Nodes(
            (first[0], first[1], first[2]), self._compute_node_positions(axes[0], axes[1], axes[2], organs=True)
        )

    def interpolate_positions(self, nodes: Nodes, z: Axis, y: Axis, x: Axis) -> Tensor:
        """Positions (3, z, y, x) in mm (x, y, z) in the label map of points with these coordinates (mm) of the body.

        Interpolates between the nodes (``compute_nodes``).
        """
        values = nodes.values
        # x first and z last, so that the large steps copy whole rows and planes.
        for dimension, axis in ((3, x), (2, y), (1, z)):
            position = axis / NODE_MM
            floor = np.floor(position)
            index = torch.from_numpy(floor.astype(np.int64) - nodes.first[dimension - 1]).to(self.device)
            shape = [1, 1, 1, 1]
            shape[dimension] = len(axis)
            weight = torch.from_numpy((position - floor).astype(np.float32)).to(self.device).view(shape)
            below = values.index_select(dimension, index)
            above = values.index_select(dimension, index + 1)
            above -= below
            above *= weight
            values = below.add_(above)
        return values

    def find(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Positions (n, 3) in mm (x, y, z) in the body of ``points`` (n, 3) in mm of the label map.

        Uses a fixed-point iteration with an accuracy of a few mm, and ignores growth and shift of single organs.
        """
        start, field = self._lattice
        values = torch.from_numpy(field)
        to_body = np.linalg.inv(self.matrix)
        found = (points - self._anatomy.center) @ to_body.T
        for _ in range(5):
            lattice = torch.from_numpy((found / _COARSE_MM - start).T.copy())
            reached = interpolate_trilinear(values, lattice).numpy().T
            found = found + (points - reached) @ to_body.T
        return found

    def estimate_volumes_ml(self) -> dict[int, float]:
        """Volumes (ml) of the organs in this geometry, by label; infinite if the geometry folds.

        Estimated from the local change of volume at some points of each organ. Ignores growth of single organs.
        """
        start, field = self._lattice
        rows = [
            np.stack([np.gradient(field[i], _COARSE_MM, axis=axis) for axis in (2, 1, 0)], axis=-1) for i in range(3)
        ]
        stretch = torch.from_numpy(np.linalg.det(np.stack(rows, axis=-2))[None].copy())
        labels = sorted(self._anatomy.positions)
        points = [self._anatomy.positions[label][:_VOLUME_POINTS] for label in labels]
        found = self.find(np.concatenate(points))
        at_points = interpolate_trilinear(stretch, torch.from_numpy((found / _COARSE_MM - start).T.copy()))[0].numpy()
        volumes = {}
        ends = np.cumsum([len(part) for part in points])
        for label, part in zip(labels, np.split(at_points, ends[:-1]), strict=True):
            folded = bool((part <= 0).any())
            volumes[label] = float("inf") if folded else self._anatomy.volumes_ml[label] * float((1 / part).mean())
        return volumes

    @cached_property
    def _lattice(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The whole body at coarse nodes: index of the first node (x, y, z), and positions (3, z, y, x) in mm."""
        scale = np.array(self._deformation.scale)
        low, high = ((corner - self._anatomy.center) * scale for corner in self._anatomy.trunk)
        first, last = np.floor(low / _COARSE_MM) - 1, np.ceil(high / _COARSE_MM) + 2
        x, y, z = (np.arange(a, b) * _COARSE_MM for a, b in zip(first, last, strict=True))
        return first, self._compute_node_positions(z, y, x, organs=False).to("cpu", torch.float64).numpy()

    def _compute_node_positions(self, z: Axis, y: Axis, x: Axis, organs: bool) -> Tensor:
        device = self.device
        mz, my, mx = (torch.from_numpy(axis.astype(np.float32)).to(device) for axis in (z, y, x))
        center = self._anatomy.center
        place = torch.empty((3, len(z), len(y), len(x)), dtype=torch.float32, device=device)
        for axis in range(3):
            a, b, c = (float(np.float32(value)) for value in self.matrix[axis])
            plane = (mz * c + float(np.float32(center[axis])))[:, None] + my * b
            place[axis] = plane[:, :, None] + mx * a
        for number, (length, sd) in enumerate(zip(ELASTIC_MM, self._deformation.elastic, strict=True)):
            if sd:
                bend = sample_smooth_noise(self._seed + 101 * number, (z, y, x), length, device, channels=3)
                # Less along the body, where thin organs are stacked.
                bend[2] *= 0.7
                place += bend * sd
        shape = place.shape
        if self._warps:
            before = place.reshape(3, -1).clone()
            moved = place.reshape(3, -1)
            for field, warp, weight in self._warps:
                lattice = torch.stack([(before[i] - warp.start[i]) * (1.0 / warp.step) for i in range(3)])
                moved += interpolate_trilinear(field.to(torch.float32), lattice) * weight
            place = moved.reshape(shape)
        if organs and (self._deformation.growth or self._deformation.shift):
            place = place - self._compute_organ_displacement(place.reshape(3, -1)).reshape(shape)
        return place

    def _compute_organ_displacement(self, place: Tensor) -> Tensor:
        """Displacement (3, n) in mm of points (3, n) by growing and moving organs."""
        anatomy, deformation = self._anatomy, self._deformation
        lattice = torch.stack([place[i] * (1.0 / anatomy.change_step[i]) for i in range(3)])
        low = [int(v) for v in torch.floor(lattice.amin(dim=1)).tolist()][::-1]
        high = [int(v) + 2 for v in torch.floor(lattice.amax(dim=1)).tolist()][::-1]
        total = torch.zeros((3, *(b - a for a, b in zip(low, high, strict=True))), device=place.device)
        for structure, change in anatomy.changes.items():
            growth = deformation.growth.get(structure, 0.0)
            shift = deformation.shift.get(structure, (0.0, 0.0, 0.0))
            if not growth and not any(shift):
                continue
            size = change.field.shape[1:]
            first = [max(a, s) for a, s in zip(low, change.start, strict=True)]
            last = [min(b, s + n) for b, s, n in zip(high, change.start, size, strict=True)]
            if any(a >= b for a, b in zip(first, last, strict=True)):
                continue
            inner = tuple(slice(a - s, b - s) for a, b, s in zip(first, last, change.start, strict=True))
            part = self._changes[structure][(slice(None), *inner)].to(torch.float32)
            block = tuple(slice(a - begin, b - begin) for a, b, begin in zip(first, last, low, strict=True))
            target = total[(slice(None), *block)]
            for axis in range(3):
                target[axis] += part[axis] * growth + part[3] * shift[axis]
        return interpolate_trilinear(total, lattice, (low[2], low[1], low[0]))


def interpolate_trilinear(field: Tensor, points: Tensor, first: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Trilinear interpolation of ``field`` (channels, z, y, x) at ``points`` (3, n): values (channels, n).

    Points are x, y, z in lattice units; ``first`` is the lattice point (x, y, z) of the field's first value. Points
    outside the field get the value at its border.
    """
    depth, height, width = field.shape[1:]
    flat = field.reshape(len(field), -1)
    left, weights = [], []
    for axis, size in enumerate((width, height, depth)):
        floor = torch.floor(points[axis])
        t = points[axis] - floor
        index = floor.to(torch.int64) - first[axis]
        t = torch.where(index < 0, torch.zeros_like(t), t)
        t = torch.where(index > size - 2, torch.ones_like(t) if size > 1 else torch.zeros_like(t), t)
        left.append(index.clamp(0, max(size - 2, 0)))
        weights.append(t)
    base = (left[2] * height + left[1]) * width + left[0]
    step_x, step_y, step_z = (1 if width > 1 else 0), (width if height > 1 else 0), (height * width if depth > 1 else 0)

    def interpolate_x(offset: int) -> Tensor:
        left_end = flat.index_select(1, base + offset)
        return left_end + (flat.index_select(1, base + (offset + step_x)) - left_end) * weights[0]

    def interpolate_xy(offset: int) -> Tensor:
        back = interpolate_x(offset)
        return back + (interpolate_x(offset + step_y) - back) * weights[1]

    lower = interpolate_xy(0)
    return lower + (interpolate_xy(step_z) - lower) * weights[2]
