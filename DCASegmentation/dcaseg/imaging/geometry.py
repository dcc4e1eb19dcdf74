"""Where voxels lie as a header states it, and the right-angled grid that is closest to it.

Headers written with few digits have axes that are not quite at right angles; a gantry tilt or a wrong header has axes
that are far from it. The first can be put right without moving any voxel by a noticeable part of its size.
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

# In voxels, at the corner where it is largest.
ROUNDING = 0.1
HALF_A_VOXEL = 0.5
_SAME_MM = 1e-3
_log = logging.getLogger(__name__)
# Air: what lies beyond the voxels of a CT.
_OUTSIDE_HU = -1024.0


@dataclass(frozen=True)
class Placement:
    """From voxel index (x, y, z) to mm in LPS: ``columns`` (3, 3) @ index + ``origin`` (3,). Any axes."""

    columns: np.ndarray
    origin: np.ndarray

    @classmethod
    def of(cls, image: sitk.Image) -> Placement:
        """The placement of a 3D image."""
        grid = Grid.of(image)
        return cls(grid.axes * np.array(grid.spacing), np.array(grid.origin))

    @property
    def spacing(self) -> np.ndarray:
        """Length of each step in mm (x, y, z)."""
        return np.linalg.norm(self.columns, axis=0)


def placed(image: sitk.Image, placement: Placement, path: Path, notes: list[str], straighten: bool) -> sitk.Image:
    """``image`` on the right-angled grid closest to ``placement``; its voxels are the same where they move by less
    than half a voxel (a note says so from a tenth on).

    Beyond that they are resampled if ``straighten``, which a note says. Raises ImageError where they may not.
    """
    spacing = placement.spacing
    axes = placement.columns / spacing
    size = image.GetSize()
    nearest = _nearest_rotation(axes)
    straight = nearest * spacing
    # The center of the volume stays, so that no corner moves further than another.
    to_center = (np.array(size) - 1) / 2
    voxels = disagreement(placement.columns, straight, size) / 2
    origin = placement.origin
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-6):
        nearest = axes
    elif voxels > HALF_A_VOXEL:
        if not straighten:
            raise file_errors.sheared(path)
        notes.append(f"{path.name}: its axes are not at right angles; it was resampled to a right-angled grid.")
        return straightened(image, placement)
    else:
        origin = origin + (placement.columns - straight) @ to_center
    if ROUNDING < voxels <= HALF_A_VOXEL:
        notes.append(f"{path.name}: its axes are not quite at right angles; voxels moved by up to {voxels:.2g} voxels.")
    image.SetSpacing([float(step) for step in spacing])
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection(nearest.ravel().tolist())
    return image


def lay_over(labels: sitk.Image, name: str, ct: sitk.Image, ct_name: str, notes: list[str] | None = None) -> None:
    """Gives ``labels`` the geometry of ``ct`` where no voxel moves by a tenth of a voxel, as where a program rounded
    it; a note says so from 0.001 mm on (logged as a warning where ``notes`` is None).

    Raises ImageError where the two lie on different grids.
    """
    grid = Grid.of(ct)
    if grid.same_as(Grid.of(labels), _SAME_MM):
        return
    if labels.GetSize() != ct.GetSize():
        shown = [" x ".join(map(str, image.GetSize())) for image in (labels, ct)]
        why = f"it has {shown[0]} voxels, not {shown[1]}"
    else:
        voxels = disagreement(_matrix(ct), _matrix(labels), ct.GetSize())
        if voxels < ROUNDING:
            apart = float(np.abs(grid.corners() - Grid.of(labels).corners()).max())
            grid.to_image_geometry(labels)
            note = f"{name} lies {apart:.2g} mm off the grid of {ct_name}; it was laid over it voxel by voxel."
            if notes is None:
                _log.warning(note)
            else:
                notes.append(note)
            return
        why = f"they are up to {voxels:.3g} voxels apart"
    raise ImageError(
        f"{name} does not lie on the grid of {ct_name}: {why}.",
        "Resample the label map to the CT with nearest neighbor, for instance in 3D Slicer (Resample Scalar Volume).",
    )


def _matrix(image: sitk.Image) -> np.ndarray:
    placement = Placement.of(image)
    return np.vstack([np.c_[placement.columns, placement.origin], [0.0, 0.0, 0.0, 1.0]])


def straightened(image: sitk.Image, placement: Placement) -> sitk.Image:
    """``image``, whose voxels lie as ``placement`` says, resampled (linear, float32) to a right-angled grid.

    The first two axes stay in their plane, the third is normal to it; the grid covers every voxel, and what lies
    beyond them is air. The steps of the first two axes stay; that of the third is the distance of the planes.
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
    by_index = sitk.Image(image)
    by_index.SetSpacing((1, 1, 1))
    by_index.SetOrigin((0, 0, 0))
    by_index.SetDirection(np.eye(3).ravel().tolist())
    to_index = np.linalg.inv(columns)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_index.ravel().tolist())
    transform.SetTranslation((-to_index @ placement.origin).tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(count) for count in high - low + 1])
    resampler.SetOutputSpacing(steps.tolist())
    resampler.SetOutputOrigin((placement.origin + axes @ (low * steps)).tolist())
    resampler.SetOutputDirection(axes.ravel().tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(_OUTSIDE_HU)
    resampler.SetTransform(transform)
    return resampler.Execute(by_index)


def disagreement(one: np.ndarray, other: np.ndarray, size: Sequence[int]) -> float:
    """How far two matrices (3x3 from the first voxel on, or 4x4 with origins) put a voxel of a volume of ``size``
    (x, y, z) apart at most, in voxels of ``one``."""
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(size) - 1)
    if one.shape == (4, 4):
        corners = np.c_[corners, np.ones(8)]
    apart = (corners @ (np.asarray(other) - np.asarray(one)).T)[:, :3]
    return float(np.abs(apart @ np.linalg.inv(one[:3, :3]).T).max())


def _nearest_rotation(axes: np.ndarray) -> np.ndarray:
    """The matrix with orthonormal columns closest to ``axes`` (polar decomposition); it may mirror, as ``axes`` do."""
    left, _, right = np.linalg.svd(axes)
    return left @ right
