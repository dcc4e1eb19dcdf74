"""Grids of voxels in space: that of a CT, and the model's grid over the same body.

Letters name directions in the patient, as nibabel's and MONAI's axis codes do: a grid is "RAS" if its first index
increases toward the patient's Right, its second toward Anterior, its third toward Superior. Coordinates are
SimpleITK's, which are LPS: x increases to the Left, y to Posterior, z to Superior. An array on a grid has the axes
(z, y, x), the reverse of the index order, so the array of a "RAS" grid is what MONAI calls "SAR".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

_WORLD_AXIS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
# MONAI's Spacing keeps the spacing of an axis that is this close (mm) to the one asked for.
_SAME_SPACING_MM = 1e-3


@dataclass(frozen=True)
class Grid:
    """The position of the voxels of an image.

    ``size`` is the number of voxels along (x, y, z), ``spacing`` their distance in mm, ``origin`` the center of voxel
    (0, 0, 0) in mm (LPS), and ``direction`` the 3x3 matrix (row by row) whose columns are the unit vectors of the axes.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def from_image(cls, image: sitk.Image) -> Grid:
        """The grid of a 3D image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (z, y, x) of an array on this grid."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def axes(self) -> np.ndarray:
        """The 3x3 matrix whose columns are the unit vectors (LPS) of the index axes x, y, z."""
        return np.reshape(self.direction, (3, 3))

    @property
    def volume_ml_per_voxel(self) -> float:
        """The volume of one voxel in ml (1 ml = 1000 mm³)."""
        return float(np.prod(self.spacing)) / 1000.0

    def to_image_geometry(self, image: sitk.Image) -> None:
        """Give ``image`` this origin, spacing and direction. Raises ValueError if its size is different."""
        if image.GetSize() != self.size:
            raise ValueError(f"the image has {image.GetSize()} voxels, the grid {self.size}")
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)

    def make_image(self, array: np.ndarray) -> sitk.Image:
        """A new image on this grid with the values of ``array`` (z, y, x)."""
        image = sitk.GetImageFromArray(array)
        self.to_image_geometry(image)
        return image

    def is_same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether every voxel lies within ``tolerance_mm`` of its counterpart in ``other``."""
        if self.size != other.size:
            return False
        return bool(np.abs(self.get_corners() - other.get_corners()).max() <= tolerance_mm)

    def get_corners(self) -> np.ndarray:
        """The centers of the eight corner voxels in mm (LPS), shape (8, 3). All other voxels lie between them."""
        index = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(self.size) - 1)
        return np.array(self.origin) + (index * np.array(self.spacing)) @ self.axes.T


def make_model_grid(image: sitk.Image | Grid, spacing: tuple[float, float, float], orientation: str = "RAS") -> Grid:
    """The grid a model uses for a CT: axes ordered and directed as ``orientation`` says, ``spacing`` in mm (x, y, z).

    The convention is that of MONAI's ``Orientation`` followed by ``Spacing``, so that a MONAI bundle sees the same
    voxels. Axes are permuted and flipped, never rotated. The first voxels of both grids have the same center. An axis
    of n voxels at s mm becomes round((n - 1) s / t + 1) voxels at t mm, which may reach t/2 beyond the last center.

    Raises ValueError if ``orientation`` is not a three-letter code or a spacing is not positive.
    """
    grid = image if isinstance(image, Grid) else Grid.from_image(image)
    if min(spacing) <= 0:
        raise ValueError(f"the spacing {spacing} mm is not positive")
    size, step, columns = [], [], []
    origin = np.array(grid.origin)
    for target, (axis, sign) in zip(spacing, _find_index_axes(grid, orientation), strict=True):
        count, own = grid.size[axis], grid.spacing[axis]
        if sign < 0:
            origin = origin + grid.axes[:, axis] * own * (count - 1)
        used = own if abs(own - target) <= _SAME_SPACING_MM else target
        columns.append(sign * grid.axes[:, axis])
        step.append(float(used))
        # The first rounding restores ties, such as 2.4999999999 for 2.5, which are then rounded half to even.
        size.append(int(np.rint(np.round((count - 1) * own / used, 6) + 1.0)))
    x, y, z = origin.tolist()
    return Grid(
        size=(size[0], size[1], size[2]),
        spacing=(step[0], step[1], step[2]),
        origin=(x, y, z),
        direction=tuple(np.stack(columns, axis=1).ravel().tolist()),
    )


def resize_grid(image: sitk.Image | Grid, shape: tuple[int, int, int], orientation: str = "RAS") -> Grid:
    """A grid of ``shape`` (z, y, x) voxels that covers ``image``, with axes as those of ``make_model_grid``.

    Both grids have the same outer faces, as if an array were resized, so voxels may have any proportions. Raises
    ValueError if ``orientation`` is not a three-letter code or a side is below 1.
    """
    if min(shape) < 1:
        raise ValueError(f"the shape {shape} has a side without a voxel")
    grid = image if isinstance(image, Grid) else Grid.from_image(image)
    own = [grid.spacing[axis] for axis, _ in _find_index_axes(grid, orientation)]
    oriented = make_model_grid(grid, (own[0], own[1], own[2]), orientation)
    size = (shape[2], shape[1], shape[0])
    spacing = [n * step / m for n, step, m in zip(oriented.size, oriented.spacing, size, strict=True)]
    to_first_center = oriented.axes @ (np.array(spacing) - np.array(oriented.spacing)) / 2
    x, y, z = (np.array(oriented.origin) + to_first_center).tolist()
    return Grid(size, (spacing[0], spacing[1], spacing[2]), (x, y, z), oriented.direction)


def get_canonical_view(array: np.ndarray, grid: sitk.Image | Grid, orientation: str = "RAS") -> np.ndarray:
    """A view of ``array`` (…, z, y, x) on ``grid``, with its axes ordered and directed as ``orientation`` says.

    Its axes are those of ``make_model_grid(grid, spacing, orientation)``. Writing to the view changes ``array``. Raises
    ValueError if the shapes differ.
    """
    grid = grid if isinstance(grid, Grid) else Grid.from_image(grid)
    if array.shape[-3:] != grid.shape:
        raise ValueError(f"the array has the shape {array.shape[-3:]}, the grid {grid.shape} (z, y, x)")
    lead = array.ndim - 3
    # Converts index axes (x, y, z) to array axes (z, y, x), both in the order of the list and in its numbers.
    selected = [(lead + 2 - axis, sign) for axis, sign in reversed(_find_index_axes(grid, orientation))]
    view = array.transpose(*range(lead), *(axis for axis, _ in selected))
    flips = tuple(slice(None, None, sign) for _, sign in selected)
    return view[(slice(None),) * lead + flips]


def _find_index_axes(grid: Grid, orientation: str) -> list[tuple[int, int]]:
    """For each letter of ``orientation``, the closest index axis of ``grid``, and 1 or -1 for its direction."""
    try:
        targets = [_WORLD_AXIS[letter] for letter in orientation.upper()]
    except KeyError:
        targets = []
    if sorted(world for world, _ in targets) != [0, 1, 2]:
        raise ValueError(f"{orientation!r} is not an orientation: it needs one letter each of R/L, A/P and S/I")
    nearest = find_nearest_world_axes(grid.axes)
    axes = []
    for world, sign in targets:
        axis = next(index for index, (line, _) in enumerate(nearest) if line == world)
        axes.append((axis, sign * nearest[axis][1]))
    return axes


def find_nearest_world_axes(axes: np.ndarray) -> list[tuple[int, int]]:
    """For each column of ``axes``, the coordinate axis closest to it and its sign; each axis is used once.

    The column with the largest component is assigned first, as in nibabel's ``io_orientation``, which MONAI uses.
    """
    remaining = np.array(axes, dtype=float)
    nearest = [(0, 1)] * 3
    for column in np.argsort(-np.max(axes**2, axis=0), kind="stable"):
        world = int(np.argmax(np.abs(remaining[:, column])))
        nearest[column] = (world, 1 if remaining[world, column] > 0 else -1)
        remaining[world, :] = 0.0
    return nearest
