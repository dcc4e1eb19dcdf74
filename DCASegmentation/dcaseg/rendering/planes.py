"""The planes that show the organs of a CT best, and the pixels of an image on them.

Positions are RAS in mm, as in Slicer: x increases to the patient's right, y to anterior, z to superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .body import AIR_HU, downsample, erode

# Columns: the directions to the right of the screen, up, and of the slice offset, in RAS. They equal Slicer's presets,
# as its views would otherwise be labeled "Reformat". In radiological convention, the patient's right is on the left of
# axial and coronal views, and sagittal views look to the left.
SCREEN_AXES = {
    "axial": np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).T,
    "coronal": np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).T,
    "sagittal": np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]).T,
}
_NORMAL_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}

_MARGIN_MM = 10.0
_BEYOND_ORGANS_MM = 25.0
_MIN_WIDTH_TO_HEIGHT, _MAX_WIDTH_TO_HEIGHT = 0.6, 1.7


@dataclass(frozen=True)
class Plane:
    """A rectangle that cuts the patient: its orientation, center (RAS, mm), and width and height on the screen (mm)."""

    orientation: str
    center: tuple[float, float, float]
    width_mm: float
    height_mm: float

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width_mm / self.height_mm


def choose_planes(ct: sitk.Image, labels: sitk.Image) -> dict[str, Plane]:
    """One plane for each orientation, at the position that shows the most organs.

    Each organ votes for a position with its cross-section there, relative to its largest one, so that a small organ
    counts as much as the liver. Without any organ, the planes pass through the middle of the body.
    """
    low, high = _compute_padded_box(ct)
    points, organs = _get_labeled_points(labels)
    if len(points):
        # A scan may extend far above and below the organs.
        low[2] = max(low[2], points[:, 2].min() - _BEYOND_ORGANS_MM)
        high[2] = min(high[2], points[:, 2].max() + _BEYOND_ORGANS_MM)
    center = [
        _find_best_position(
            points[:, axis], organs, _get_sample_spacing(labels, axis), default=(low[axis] + high[axis]) / 2
        )
        for axis in range(3)
    ]
    return {name: _make_plane(name, center, low, high) for name in SCREEN_AXES}


def _make_plane(orientation: str, position: list[float], low: np.ndarray, high: np.ndarray) -> Plane:
    axis = _NORMAL_AXIS[orientation]
    center = (low + high) / 2
    center[axis] = position[axis]
    extent = np.abs(SCREEN_AXES[orientation].T @ (high - low))
    width, height = float(extent[0]), float(extent[1])
    # A very short or very long scan would otherwise give a very narrow panel.
    width, height = max(width, _MIN_WIDTH_TO_HEIGHT * height), max(height, width / _MAX_WIDTH_TO_HEIGHT)
    return Plane(orientation, (float(center[0]), float(center[1]), float(center[2])), width, height)


def _compute_padded_box(ct: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """The box around the body with a margin, cropped to the image (lowest and highest RAS corner, mm)."""
    low, high = _compute_body_box(ct)
    ends = sitk.Image([2, 2, 2], sitk.sitkUInt8)
    ends.SetOrigin(ct.GetOrigin())
    ends.SetDirection(ct.GetDirection())
    ends.SetSpacing([spacing * (size - 1) for spacing, size in zip(ct.GetSpacing(), ct.GetSize(), strict=True)])
    image_box, _ = _compute_points(ends, np.ones((2, 2, 2), dtype=bool))
    return (
        np.maximum(low - _MARGIN_MM, image_box.min(axis=0)),
        np.minimum(high + _MARGIN_MM, image_box.max(axis=0)),
    )


def _compute_body_box(ct: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest RAS corner (mm) of the largest connected region that is not air."""
    coarse = downsample(ct)
    # Opening separates the body from the table.
    opened = ~erode(~erode(sitk.GetArrayViewFromImage(coarse) > AIR_HU))
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(opened.astype(np.uint8))))
    points, _ = _compute_points(coarse, _find_row_ends(sitk.GetArrayViewFromImage(parts) == 1))
    if len(points) == 0:
        points, _ = _compute_points(coarse, _find_row_ends(np.ones(coarse.GetSize()[::-1], dtype=bool)))
    return points.min(axis=0), points.max(axis=0)


def _find_row_ends(mask: np.ndarray) -> np.ndarray:
    """The first and last voxel of ``mask`` in each row, which reach as far in every direction as the whole row."""
    ends = np.zeros_like(mask)
    z, y = np.nonzero(mask.any(axis=2))
    rows = mask[z, y]
    ends[z, y, rows.argmax(axis=1)] = True
    ends[z, y, mask.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)] = True
    return ends


def _get_labeled_points(labels: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """The RAS positions (n, 3) of sampled organ voxels in mm, and their labels (n,)."""
    coarse = downsample(labels)
    array = sitk.GetArrayViewFromImage(coarse)
    points, inside = _compute_points(coarse, array > 0)
    return points, array[inside]


def _compute_points(image: sitk.Image, mask: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The RAS positions (n, 3) of the voxels in ``mask`` (z, y, x) in mm, with their indices."""
    inside = np.nonzero(mask)
    matrix = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    lps = np.stack(inside[::-1], axis=1) @ matrix.T + np.array(image.GetOrigin())
    return lps * np.array([-1.0, -1.0, 1.0]), inside


def _get_sample_spacing(image: sitk.Image, axis: int) -> float:
    """The distance (mm) between neighboring samples along the image axis closest to a patient axis."""
    nearest = int(np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3))[axis])))
    return float(downsample(image).GetSpacing()[nearest])


def _find_best_position(coordinates: np.ndarray, organs: np.ndarray, step: float, default: float) -> float:
    """The position along one axis (mm) with the most votes of ``choose_planes``."""
    if len(coordinates) == 0:
        return float(default)
    first = coordinates.min()
    # The bins are as wide as the sample distance: otherwise some would contain one plane of voxels and others two.
    bins = np.rint((coordinates - first) / step).astype(int)
    votes = np.zeros(bins.max() + 1)
    for organ in np.unique(organs):
        counts = np.bincount(bins[organs == organ], minlength=len(votes))
        votes += counts / counts.max()
    return float(first + np.argmax(votes) * step)


_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}


def sample(image: sitk.Image, plane: Plane, pixels: tuple[int, int], interpolation: str, outside: float) -> np.ndarray:
    """The values of ``image`` on ``plane`` as an array (rows, columns), top row first.

    ``pixels`` is (columns, rows), ``interpolation`` "linear" or "nearest". Beyond the image, values are ``outside``.
    """
    columns, rows = pixels
    right, up, _ = SCREEN_AXES[plane.orientation].T * np.array([-1.0, -1.0, 1.0])  # RAS to LPS
    across, down = plane.width_mm / columns, plane.height_mm / rows
    center = np.array(plane.center) * np.array([-1.0, -1.0, 1.0])
    first = center - right * across * (columns - 1) / 2 + up * down * (rows - 1) / 2
    directions = np.stack([right, -up, np.cross(right, -up)], axis=1)
    cut = sitk.Resample(
        image, (columns, rows, 1), sitk.Transform(3, sitk.sitkIdentity), _INTERPOLATORS[interpolation],
        first.tolist(), (across, down, 1.0), directions.ravel().tolist(), outside,
    )  # fmt: skip
    return sitk.GetArrayFromImage(cut)[0]
