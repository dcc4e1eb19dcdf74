"""The position of voxels as a header states it, and the closest right-angled grid.

Axes that are not quite at right angles come from headers written with few digits; they can be corrected without moving
any voxel by a noticeable part of its size. Axes far from right angles come from a gantry tilt or a wrong header.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from . import file_errors
from .grid import Grid
from .size_limits import require_allowed_size

# In voxels, at the corner of the volume where the deviation is largest.
ROUNDING_TOLERANCE_VOXELS = 0.1
MAX_DEVIATION_VOXELS = 0.5
_SAME_MM = 1e-3
_log = logging.getLogger(__name__)
# The value of air, used beyond the voxels of a CT.
_OUTSIDE_HU = -1024.0


@dataclass(frozen=True)
class Placement:
    """A map from voxel index (x, y, z) to mm (LPS): ``columns`` (3, 3) @ index + ``origin`` (3,), with any axes."""

    columns: np.ndarray
    origin: np.ndarray

    @classmethod
    def from_image(cls, image: sitk.Image) -> Placement:
        """The placement of a 3D image."""
        grid = Grid.from_image(image)
        return cls(grid.axes * np.array(grid.spacing), np.array(grid.origin))

    @property
    def spacing(self) -> np.ndarray:
        """The length of each step in mm (x, y, z)."""
        return np.linalg.norm(self.columns, axis=0)


def apply_placement(
    image: sitk.Image, placement: Placement, path: Path, notes: list[str], straighten: bool
) -> sitk.Image:
    """``image`` on the right-angled grid closest to ``placement``.

    Voxel values stay the same if no voxel moves by more than half a voxel; from a tenth of a voxel on, ``notes``
    receives a note. Beyond half a voxel, the image is resampled if ``straighten``, with a note; otherwise ImageError is
    raised.
    """
    spacing = placement.spacing
    axes = placement.columns / spacing
    size = image.GetSize()
    nearest = _find_nearest_rotation(axes)
    straight = nearest * spacing
    # The center of the volume stays in place, so that all corners move equally far.
    to_center = (np.array(size) - 1) / 2
    voxels = compute_max_displacement(placement.columns, straight, size) / 2
    origin = placement.origin
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-6):
        nearest = axes
    elif voxels > MAX_DEVIATION_VOXELS:
        if not straighten:
            raise file_errors.sheared(path)
        notes.append(f"{path.name}: its axes are not at right angles; it was resampled to a right-angled grid.")
        return resample_to_orthogonal_grid(image, placement, path.name)
    else:
        origin = origin + (placement.columns - straight) @ to_center
    if ROUNDING_TOLERANCE_VOXELS < voxels <= MAX_DEVIATION_VOXELS:
        notes.append(f"{path.name}: its axes are not quite at right angles; voxels moved by up to {voxels:.2g} voxels.")
    image.SetSpacing([float(step) for step in spacing])
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection(nearest.ravel().tolist())
    return image


def copy_geometry_if_close(
    labels: sitk.Image, name: str, ct: sitk.Image, ct_name: str, notes: list[str] | None = None
) -> None:
    """Give ``labels`` the geometry of ``ct`` if the two differ only by rounding: by less than a tenth of a voxel.

    From 0.001 mm on, a note goes to ``notes`` (or to the log, as a warning, if ``notes`` is None).

    Raises ImageError if the two lie on different grids.
    """
    grid = Grid.from_image(ct)
    if grid.is_same_as(Grid.from_image(labels), _SAME_MM):
        return
    if labels.GetSize() != ct.GetSize():
        shown = [" x ".join(map(str, image.GetSize())) for image in (labels, ct)]
        reason = f"it has {shown[0]} voxels, not {shown[1]}"
    else:
        voxels = compute_max_displacement(_compute_affine(ct), _compute_affine(labels), ct.GetSize())
        if voxels < ROUNDING_TOLERANCE_VOXELS:
            apart = float(np.abs(grid.get_corners() - Grid.from_image(labels).get_corners()).max())
            grid.to_image_geometry(labels)
            note = f"{name} is {apart:.2g} mm off the grid of {ct_name}; it was aligned with it voxel by voxel."
            if notes is None:
                _log.warning(note)
            else:
                notes.append(note)
            return
        reason = f"they are up to {voxels:.3g} voxels apart"
    raise ImageError(
        f"{name} does not lie on the grid of {ct_name}: {reason}.",
        "Resample the label map to the CT (nearest neighbor), for instance in 3D Slicer (Resample Scalar Volume).",
    )


def _compute_affine(image: sitk.Image) -> np.ndarray:
    """The 4x4 matrix from voxel index to mm (LPS)."""
    placement = Placement.from_image(image)
    return np.vstack([np.c_[placement.columns, placement.origin], [0.0, 0.0, 0.0, 1.0]])


def resample_to_orthogonal_grid(image: sitk.Image, placement: Placement, name: str) -> sitk.Image:
    """``image``, whose voxels lie as ``placement`` states, resampled (linear, float32) to a right-angled grid.

    The first two axes stay in their plane and the third is normal to it. The first two spacings stay; the third is the
    distance between planes. The grid covers every voxel; beyond them, it is filled with air. Raises ImageError if the
    grid would be too large; ``name`` is used in the message.
    """
    columns = placement.columns
    x, y = (columns[:, axis] / np.linalg.norm(columns[:, axis]) for axis in (0, 1))
    y = y - x * (x @ y)
    y /= np.linalg.norm(y)
    normal = np.cross(x, y)
    normal *= np.sign(normal @ columns[:, 2])
    axes = np.stack([x, y, normal], axis=1)
    steps = np.array([np.linalg.norm(columns[:, 0]), abs(columns[:, 1] @ y), abs(columns[:, 2] @ normal)])
    last = np.array(image.GetSize()) - 1
    corners = (np.indices((2, 2, 2)).reshape(3, 8).T * last) @ columns.T @ axes / steps
    low, high = np.floor(corners.min(axis=0) + 1e-4), np.ceil(corners.max(axis=0) - 1e-4)
    size = [int(count) for count in high - low + 1]
    require_allowed_size(
        size,
        f"{name}, resampled to a right-angled grid of {' x '.join(f'{step:.3g}' for step in steps)} mm,",
        "Check the spacing and the directions of its axes.",
    )
    by_index = sitk.Image(image)
    by_index.SetSpacing((1, 1, 1))
    by_index.SetOrigin((0, 0, 0))
    by_index.SetDirection(np.eye(3).ravel().tolist())
    to_index = np.linalg.inv(columns)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_index.ravel().tolist())
    transform.SetTranslation((-to_index @ placement.origin).tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size)
    resampler.SetOutputSpacing(steps.tolist())
    resampler.SetOutputOrigin((placement.origin + axes @ (low * steps)).tolist())
    resampler.SetOutputDirection(axes.ravel().tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(_OUTSIDE_HU)
    resampler.SetTransform(transform)
    return resampler.Execute(by_index)


def compute_max_displacement(one: np.ndarray, other: np.ndarray, size: Sequence[int]) -> float:
    """The largest distance, in voxels of ``one``, between where two matrices put the same voxel.

    The matrices are 3x3 (without origin) or 4x4, for a volume of ``size`` (x, y, z) voxels.
    """
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(size) - 1)
    if one.shape == (4, 4):
        corners = np.c_[corners, np.ones(8)]
    apart = (corners @ (np.asarray(other) - np.asarray(one)).T)[:, :3]
    return float(np.abs(apart @ np.linalg.inv(one[:3, :3]).T).max())


def _find_nearest_rotation(axes: np.ndarray) -> np.ndarray:
    """The matrix with orthonormal columns closest to ``axes`` (polar decomposition). It mirrors if ``axes`` do."""
    left, _, right = np.linalg.svd(axes)
    return left @ right
