"""The geometry of a scan, and the reference coordinates at its sample points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .anatomy import Anatomy
from .person import REFERENCE_BOTTOM, REFERENCE_TOP, create_rng
from .shapes import Array, compute_rotation_matrix
from .structure import SampleGrid

_NODE_MM = 9.0
"""Distance of the nodes where coordinates and outlines are computed; cubic interpolation gives the points between."""
_BLOCK_POINTS = 1_500_000
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Scan:
    """Geometry of a scan in SimpleITK's terms.

    ``size`` is (i, j, k), ``spacing`` is in mm, ``origin`` in mm (LPS); the columns of ``direction`` (3, 3) are the
    directions of the index axes.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: NDArray[np.float64]
    direction: NDArray[np.float64]

    @classmethod
    def from_anatomy(
        cls, anatomy: Anatomy, spacing: tuple[float, float, float], orientation: str, tilt_degrees: float
    ) -> Scan:
        """The scan of a person from the bases of the lungs to below the prostate, with air around the body.

        ``orientation`` has a letter for each index axis, its direction (RAS: right, front, head). ``tilt_degrees``
        rotates the scan planes about the left-right axis, and by half as much about the other two. Raises ValueError
        for an invalid orientation, spacing or tilt.
        """
        axes = orientation_matrix(orientation)
        if len(spacing) != 3 or not all(0.3 <= s <= 20.0 for s in spacing):
            raise ValueError(f"spacing must be three numbers from 0.3 to 20 mm, not {spacing}")
        if not -30.0 <= tilt_degrees <= 30.0:
            raise ValueError(f"tilt must be between -30 and 30 degrees, not {tilt_degrees}")
        direction = compute_rotation_matrix((tilt_degrees, tilt_degrees / 2, tilt_degrees / 2)) @ axes
        low, high = _compute_extent(anatomy)
        center, half = (low + high) / 2, (high - low) / 2
        # The tilted box must contain the whole upright box.
        reach = np.abs(direction.T) @ half
        size = np.ceil(2 * reach / np.array(spacing)).astype(int)
        origin = center - direction @ ((size - 1) * np.array(spacing) / 2)
        return cls((int(size[0]), int(size[1]), int(size[2])), spacing, origin, direction)

    def make_image(self, array: NDArray[np.generic]) -> sitk.Image:
        """A SimpleITK image with this geometry from an array (z, y, x)."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin.tolist())
        image.SetDirection(self.direction.ravel().tolist())
        return image

    def iterate_blocks(
        self, anatomy: Anatomy, factors: tuple[int, ...], smooth: bool
    ) -> Iterator[tuple[slice, SampleGrid, Smooth]]:
        """Yield the sample points in slabs of whole voxels along k, with ``factors`` (i, j, k) points per voxel.

        Yields the slab's slice of k, its points, and further smooth fields there (empty unless ``smooth``).
        """
        nodes = [_Nodes.from_axis(n, f, s) for n, f, s in zip(self.size, factors, self.spacing, strict=True)]
        per_slice = self.size[0] * self.size[1] * factors[0] * factors[1] * factors[2]
        thickness = max(1, _BLOCK_POINTS // per_slice)
        fields = _compute_smooth_fields(self, anatomy, nodes, smooth)
        edges = [*range(0, self.size[2], thickness), self.size[2]]
        for first, last in pairwise(edges):
            rows = slice(first * factors[2], last * factors[2])
            values = {name: _upsample(field, nodes, rows) for name, field in fields.items()}
            x, y, z, cavity, diaphragm = (values.pop(name) for name in ("x", "y", "z", "cavity", "diaphragm"))
            block = SampleGrid(x, y, z, cavity, diaphragm)
            yield slice(first, last), block, values


Smooth = dict[str, Array]
"""Smooth fields at the points of a block: distances to muscle, skin and table (mm), rib_angle, grain and cloud."""


def orientation_matrix(orientation: str) -> NDArray[np.float64]:
    """The direction matrix (LPS) of an image whose index axes point in the directions ``orientation``.

    Raises ValueError unless the code has each of the three body axes once.
    """
    code = orientation.upper()
    if len(code) != 3 or any(letter not in _LETTERS for letter in code) or len({_LETTERS[c][0] for c in code}) != 3:
        raise ValueError(f"orientation must be three letters, one per body axis, such as RAS; not {orientation!r}")
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(code):
        axis, sign = _LETTERS[letter]
        matrix[axis, column] = sign
    return matrix


@dataclass(frozen=True)
class _Nodes:
    """Nodes along one axis as voxel indices, and the interpolation weights (points, nodes)."""

    index: NDArray[np.float64]
    weights: Array

    @classmethod
    def from_axis(cls, count: int, factor: int, spacing: float) -> _Nodes:
        """The nodes along an axis of ``count`` voxels of ``spacing`` mm, with ``factor`` points in each voxel."""
        step = _NODE_MM / spacing
        points = (np.arange(count * factor) + 0.5) / factor - 0.5
        index = np.arange(-2.0, np.ceil(count / step) + 3.0) * step
        position = points / step + 2
        left = np.floor(position).astype(int)
        t = position - left
        weights = np.zeros((points.size, index.size), dtype=np.float32)
        rows = np.arange(points.size)
        for shift, weight in (
            (-1, -0.5 * t**3 + t**2 - 0.5 * t),
            (0, 1.5 * t**3 - 2.5 * t**2 + 1),
            (1, -1.5 * t**3 + 2 * t**2 + 0.5 * t),
            (2, 0.5 * t**3 - 0.5 * t**2),
        ):
            weights[rows, left + shift] = weight
        return cls(index, weights)


def _compute_smooth_fields(scan: Scan, anatomy: Anatomy, nodes: list[_Nodes], smooth: bool) -> dict[str, Array]:
    k, j, i = np.meshgrid(nodes[2].index, nodes[1].index, nodes[0].index, indexing="ij")
    steps = scan.direction * np.array(scan.spacing)
    px, py, pz = (scan.origin[a] + steps[a, 0] * i + steps[a, 1] * j + steps[a, 2] * k for a in range(3))
    x, y, z = anatomy.posture.to_reference(px, py, pz)
    body = anatomy.body
    fields = {
        "x": x,
        "y": y,
        "z": z,
        "cavity": body.compute_cavity_distance(x, y, z),
        "diaphragm": body.compute_diaphragm_distance(x, y, z),
    }
    if smooth:
        cloud, grain = _compute_textures(anatomy.person.seed, x, y, z)
        fields |= {
            "muscle": body.compute_muscle_distance(x, y, z),
            "skin": body.compute_skin_distance(x, y, z),
            "rib_angle": body.compute_rib_angle(x, y),
            "cloud": cloud,
            "grain": grain,
            "table": _compute_table_distance(anatomy, px, py),
        }
    return {name: np.asarray(field, dtype=np.float32) for name, field in fields.items()}


def _upsample(field: Array, nodes: list[_Nodes], rows: slice) -> Array:
    slab = np.tensordot(nodes[2].weights[rows], field, axes=1)
    slab = np.matmul(nodes[1].weights, slab)
    return np.matmul(slab, nodes[0].weights.T)


def _compute_textures(seed: int, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Two sums of waves with mean 0 and SD about 1 and wavelengths of about 90 mm and 36 mm."""
    random = create_rng(seed, "texture")
    result = []
    for length, count in ((90.0, 8), (36.0, 10)):
        total = np.zeros_like(x)
        for _ in range(count):
            direction = random.normal(size=3)
            wave = 2 * np.pi * direction / np.linalg.norm(direction) / (length * random.uniform(0.8, 1.3))
            total += np.sin(wave[0] * x + wave[1] * y + wave[2] * z + random.uniform(0, 2 * np.pi))
        result.append(total * np.sqrt(2.0 / count))
    return result[0], result[1]


def _compute_table_distance(anatomy: Anatomy, x: Array, y: Array) -> Array:
    """Distance (mm) to the curved tabletop under the person's back."""
    back = _compute_back_y(anatomy)
    return np.clip(np.hypot(x, y - (back - 420.0)) - 427.0, -30.0, 30.0)


def _compute_back_y(anatomy: Anatomy) -> float:
    fat = 0.75 * anatomy.person.subcutaneous_fat_mm
    return (118.0 + fat) * anatomy.person.stature[1]


def _compute_extent(anatomy: Anatomy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    person = anatomy.person
    stature = np.array(person.stature)
    air = 12.0
    side = (172.0 + 0.35 * person.visceral_fat_mm + 0.8 * person.subcutaneous_fat_mm) * stature[0] + air
    front = -(116.0 + person.visceral_fat_mm + person.subcutaneous_fat_mm) * stature[1] - air
    low = np.array([-side, front, REFERENCE_BOTTOM * stature[2]])
    high = np.array([side, _compute_back_y(anatomy) + 2 * air, REFERENCE_TOP * stature[2]])
    return low, high
