"""The CT in the scene: finding the open CT, exporting it or a region of it, and its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from dcaseg.errors import OutputError, UserError
from dcaseg.imaging.ct_checks import check_ct
from dcaseg.imaging.intensity import compute_voxel_checksum
from DCASegmentationLib.scene.storage import write_nrrd
from DCASegmentationLib.scene.volumes import get_ijk_to_world


@dataclass(frozen=True)
class Region:
    """A box of voxels: the indices (z, y, x) from ``first`` up to but not including ``last``."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]

    @classmethod
    def from_size(cls, size: tuple[int, ...]) -> Region:
        """All voxels of an array of ``size`` (z, y, x)."""
        return cls((0, 0, 0), (size[0], size[1], size[2]))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The region as slices of an array (z, y, x)."""
        return tuple(slice(start, stop) for start, stop in zip(self.first, self.last, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of the region (z, y, x) in voxels."""
        return tuple(stop - start for start, stop in zip(self.first, self.last, strict=True))

    @property
    def first_index_xyz(self) -> tuple[int, int, int]:
        """The first voxel index (x, y, z)."""
        return self.first[2], self.first[1], self.first[0]

    def fits(self, size: tuple[int, ...]) -> bool:
        """Whether the box lies inside an array of ``size`` (z, y, x)."""
        return all(stop <= length for stop, length in zip(self.last, size, strict=True))


def convert_roi_to_region(roi_node: Any, index_to_world: np.ndarray, size: tuple[int, ...]) -> Region:
    """The smallest box of voxels that contains a vtkMRMLMarkupsROINode, which may be rotated.

    ``get_ijk_to_world`` (4, 4) maps voxel indices (i, j, k) to world RAS (mm); ``size`` is the size of the CT (z, y,
    x). Raises UserError if the ROI has no extent yet or does not touch the CT.
    """
    half = np.array(roi_node.GetSize()) / 2
    if roi_node.GetNumberOfControlPoints() == 0 or half.min() <= 0:
        raise UserError(f"The region {roi_node.GetName()} is empty.", "Place the region on the CT, or select Whole CT.")
    to_world = slicer.util.arrayFromVTKMatrix(roi_node.GetObjectToWorldMatrix())
    corners = np.array([[*(half * signs), 1.0] for signs in product((-1.0, 1.0), repeat=3)])
    indices = (np.linalg.inv(index_to_world) @ to_world @ corners.T)[:3]
    # A voxel extends half an index to both sides of its center.
    first = np.maximum(np.floor(indices.min(axis=1) + 0.5), 0).astype(int)[::-1]
    last = np.minimum(np.ceil(indices.max(axis=1) + 0.5), size[::-1]).astype(int)[::-1]
    if (last <= first).any():
        raise UserError(f"The region {roi_node.GetName()} is outside the CT.", "Move it onto the CT.")
    return Region((int(first[0]), int(first[1]), int(first[2])), (int(last[0]), int(last[1]), int(last[2])))


def pad_to_size(labels: np.ndarray, region: Region, size: tuple[int, ...]) -> np.ndarray:
    """Pad ``labels`` (z, y, x), which cover ``region``, with background to an array of ``size`` (z, y, x)."""
    if labels.shape == tuple(size):
        return labels
    whole = np.zeros(size, labels.dtype)
    whole[region.slices] = labels
    return whole


CT_FILE = "ct.nrrd"
_ORTHOGONAL = 1e-3


def require_ct(node: Any) -> None:
    """Raises UserError unless ``node`` is a scalar volume with voxels (no label map, vector volume, or other node)."""
    if node is None:
        raise UserError("No CT is selected.", "Select the CT to segment.")
    name = node.GetName()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise UserError(f"{name} is a label map, not a CT.", "Select the CT that it belongs to.")
    # Subclasses contain vectors, tensors, or sequences of values.
    if node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise UserError(f"{name} is not a scalar volume ({node.GetNodeTagName()}).", "Select a CT volume.")
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise UserError(f"{name} has no voxels.", "Load the CT again, or select another one.")
    if image.GetNumberOfScalarComponents() != 1:
        raise UserError(f"{name} has several values per voxel.", "Select a CT with one value per voxel.")
    if min(image.GetDimensions()) < 2:
        raise UserError(f"{name} is a single slice.", "Select the whole CT volume.")


def export_ct(node: Any, folder: Path, roi_node: Any | None = None) -> tuple[Path, Region]:
    """Write a CT as ``folder / "ct.nrrd"`` in world space: a linear transform on the node is applied to its geometry.

    ``roi_node`` (vtkMRMLMarkupsROINode) limits the export to the smallest box of voxels that contains the ROI. Returns
    the file and the box (indices of the CT's own grid). The file is not compressed, because compression would take
    longer than everything else.

    Raises UserError if the node is not a CT, its transform is not linear, its axes are not at right angles, or the ROI
    is outside the CT. Raises OutputError if the file cannot be written.
    """
    require_ct(node)
    matrix = get_ijk_to_world(node)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / spacing
    if not np.allclose(directions.T @ directions, np.eye(3), atol=_ORTHOGONAL):
        raise UserError(
            f"The axes of {node.GetName()} are not at right angles (gantry tilt, or a shearing transform).",
            "Resample the CT first, with the modules Transforms (Harden) and Resample Scalar Volume.",
        )
    voxels = slicer.util.arrayFromVolume(node)
    region = (
        Region.from_size(voxels.shape) if roi_node is None else convert_roi_to_region(roi_node, matrix, voxels.shape)
    )
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    to_lps[:, 3] = to_lps @ [*region.first_index_xyz, 1.0]
    path = folder / CT_FILE
    try:
        write_nrrd(voxels[region.slices], to_lps, path)
    except OSError:
        raise OutputError(
            f"{node.GetName()} could not be written to {folder}: the disk is full or the folder is not writable.",
            "Free some space, or choose another temporary folder in Slicer's application settings (Modules).",
        ) from None
    return path, region


def compute_ct_checksum(node: Any) -> str:
    """The checksum of the voxels of a volume node (see ``compute_voxel_checksum``)."""
    return compute_voxel_checksum(slicer.util.arrayFromVolume(node))


_ENOUGH_VOXELS = 500_000
_MIN_ALONG_AN_AXIS = 8


def find_open_ct() -> Any | None:
    """The CT in the red slice view, otherwise the first CT in the scene; None if no volume looks like a CT."""
    scene = slicer.mrmlScene
    composite = scene.GetSingletonNode("Red", "vtkMRMLSliceCompositeNode")
    shown = scene.GetNodeByID(composite.GetBackgroundVolumeID() or "") if composite is not None else None
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    volumes.sort(key=lambda node: node is not shown)
    return next((node for node in volumes if looks_like_ct(node)), None)


def looks_like_ct(node: Any) -> bool:
    """Whether a volume node has the values of a CT in HU, unlike a label map, an MR image, or an attention map.

    This checks only a part of the voxels, so that it takes no noticeable time; the worker checks all of them.
    """
    try:
        require_ct(node)
        check_ct(_downsample(node))
    except UserError:
        return False
    return True


def _downsample(node: Any) -> sitk.Image:
    voxels = slicer.util.arrayFromVolume(node)
    step = max(1, round((voxels.size / _ENOUGH_VOXELS) ** (1 / 3)))
    steps = [max(1, min(step, length // _MIN_ALONG_AN_AXIS)) for length in voxels.shape]
    part = np.ascontiguousarray(voxels[tuple(slice(None, None, each) for each in steps)])
    image = sitk.GetImageFromArray(part)
    image.SetSpacing([side * each for side, each in zip(node.GetSpacing(), reversed(steps), strict=True)])
    return image
