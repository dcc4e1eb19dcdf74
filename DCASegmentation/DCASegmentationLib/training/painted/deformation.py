"""Another person of the same anatomy: where in the label map each point of the new body lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...phantom.fields import rotation
from .anatomy import CHANGING, Anatomy
from .volumes import Field, Spacing
from .waves import smooth_noise, upsampled

_NODE_MM = 9.0
# Length (mm) over which the shape varies, and by how much (SD in mm).
_SCALES = ((130.0, 9.5), (60.0, 5.0), (30.0, 1.8))
# Most that an organ's surface moves out or in (mm).
_GROWTH_MM = {
    "liver": (-9.0, 10.0), "spleen": (-4.0, 13.0), "right_kidney": (-4.0, 4.0), "left_kidney": (-4.0, 4.0),
    "stomach": (-11.0, 12.0), "gallbladder": (-4.0, 7.0), "pancreas": (-3.5, 3.0), "aorta": (-3.0, 4.5),
    "inferior_vena_cava": (-3.5, 3.5), "bladder": (-10.0, 14.0), "duodenum": (-2.5, 4.0), "colon": (-5.0, 6.0),
    "bowel": (-4.0, 5.0), "heart": (-6.0, 8.0), "psoas": (-6.0, 5.0), "lung": (-6.0, 4.0),
    "prostate_uterus": (-4.0, 8.0),
}  # fmt: skip
# How far organs lie from where they were (SD), as a share of the room over which the body makes way for them.
_SHIFT = 0.15
_FIXED = ("lung", "colon", "bowel", "psoas", "aorta")


@dataclass(frozen=True)
class Deformation:
    """``scale``: size along x, y, z relative to the label map; ``degrees``: turned about them; ``growth``: mm by which
    organs' surfaces move out, and ``shift``: by which the organs lie elsewhere (x, y, z); ``elastic``: how strongly
    everything is bent, about 1."""

    scale: NDArray[np.float64]
    degrees: tuple[float, float, float]
    growth: dict[str, float]
    shift: dict[str, NDArray[np.float64]]
    elastic: float

    @classmethod
    def draw(cls, anatomy: Anatomy, random: np.random.Generator) -> Deformation:
        size = float(np.clip(random.normal(0.99, 0.07), 0.82, 1.18))
        scale = size * np.exp(np.clip(random.normal(0.0, (0.05, 0.09, 0.05)), -0.17, 0.17))
        growth = {}
        for structure in anatomy.changes:
            low, high = _GROWTH_MM[structure]
            growth[structure] = float(random.uniform(low, high) * random.choice([0.4, 1.0]))
        # Visceral fat parts the loops of the bowel and the organs.
        if random.random() < 0.45:
            for structure in ("bowel", "colon", "stomach", "pancreas", "duodenum"):
                if structure in growth:
                    growth[structure] = 0.6 * _GROWTH_MM[structure][0]
        shift = {
            structure: _SHIFT * CHANGING[structure] * np.clip(random.normal(0.0, (1.0, 1.0, 1.3)), -2.5, 2.5)
            for structure in anatomy.changes
            if structure not in _FIXED
        }
        angles = random.normal(0.0, (3.0, 3.0, 4.0))
        degrees = (float(angles[0]), float(angles[1]), float(angles[2]))
        return cls(scale, degrees, growth, shift, float(random.uniform(0.4, 1.25)))

    def positions(
        self,
        anatomy: Anatomy,
        shape: tuple[int, int, int],
        spacing: Spacing,
        corner: NDArray[np.float64],
        center: NDArray[np.float64],
        random: np.random.Generator,
    ) -> tuple[Field, Field, Field]:
        """Positions (x, y, z) in mm in the label map of the voxels of a grid, each (z, y, x).

        ``corner`` is the place of the grid's first voxel and ``center`` the point that stays, both in the label map's
        mm before the change of size.
        """  # fmt: skip
        counts = tuple(int(np.ceil((n - 1) * s / _NODE_MM)) + 2 for n, s in zip(shape, spacing[::-1], strict=True))
        nodes = [np.arange(n) * _NODE_MM for n in counts]
        z, y, x = np.meshgrid(*nodes, indexing="ij")
        offset = np.stack([x, y, z]).reshape(3, -1) + ((corner - center) * self.scale)[:, None]
        place = (rotation(self.degrees).T @ offset) / self.scale[:, None] + center[:, None]
        place = place.reshape(3, *x.shape)
        for length, sd in _SCALES:
            for axis in range(3):
                bend = smooth_noise(x.shape, (_NODE_MM,) * 3, length, random)
                # Along the body, where organs are thin and stacked, half as much.
                place[axis] += self.elastic * sd * (0.7 if axis == 2 else 1.0) * bend
        place -= self._yielded(anatomy, place)
        weights = [
            _linear(np.arange(n, dtype=np.float64) * s / _NODE_MM, count)
            for n, s, count in zip(shape, spacing[::-1], counts, strict=True)
        ]
        fields = [upsampled(component.astype(np.float32), weights) for component in place]
        return fields[0], fields[1], fields[2]

    def _yielded(self, anatomy: Anatomy, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far the organs' changes move the points at ``place`` (3, z, y, x), in mm."""
        total = np.zeros_like(place)
        step = np.array(anatomy.change_step)[:, None, None, None]
        for structure, amount in self.growth.items():
            change = anatomy.changes[structure]
            index = (place - change.start[:, None, None, None]) / step
            size = np.array(change.field.shape[:0:-1])[:, None, None, None]
            near = ((index > 0) & (index < size - 1)).all(axis=0)
            outward = _trilinear(change.field, index[:, near])
            total[:, near] += amount * outward[:3]
            if structure in self.shift:
                total[:, near] += self.shift[structure][:, None] * outward[3]
        return total


def _linear(points: NDArray[np.float64], count: int) -> Field:
    weights = np.zeros((len(points), count), np.float32)
    left = np.minimum(points.astype(int), count - 2)
    rows = np.arange(len(points))
    weights[rows, left] = 1 - (points - left)
    weights[rows, left + 1] = points - left
    return weights


def _trilinear(field: Field, points: NDArray[np.float64]) -> NDArray[np.float64]:
    left = points.astype(int)
    t = points - left
    result = np.zeros((len(field), points.shape[1]))
    for dz in (0, 1):
        for dy in (0, 1):
            for dx in (0, 1):
                weight = np.prod(np.where(np.array([dx, dy, dz])[:, None] == 1, t, 1 - t), axis=0)
                result += weight * field[:, left[2] + dz, left[1] + dy, left[0] + dx]
    return result
