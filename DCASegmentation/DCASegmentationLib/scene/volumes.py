"""Volume nodes: created from images on exactly the same grid, placed under transforms, and related to other grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util
import vtk

from dcaseg.errors import UserError
from dcaseg.types import Box
from DCASegmentationLib.scene.nodes import add_node

# Soft-tissue window of abdominal CT, in HU.
ABDOMEN_WINDOW, ABDOMEN_LEVEL = 400.0, 40.0


def show_ct(ct: sitk.Image, name: str) -> Any:
    """Add a CT (intensities in HU) to the scene, in gray with the abdominal window.

    Returns the vtkMRMLScalarVolumeNode.
    """
    node = add_volume(ct, name, "vtkMRMLScalarVolumeNode")
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    display.AutoWindowLevelOff()
    display.SetWindowLevel(ABDOMEN_WINDOW, ABDOMEN_LEVEL)
    return node


def add_volume(image: sitk.Image, name: str, node_class: str, hidden: bool = False) -> Any:
    """Add ``image`` (three-dimensional, one value per voxel) to the scene as a node of ``node_class``.

    Size, spacing (mm), origin, and directions are copied exactly; only the axes change, from SimpleITK's LPS to
    Slicer's RAS. Modules do not list a ``hidden`` node.
    """
    node = add_node(node_class, name, hidden)
    node.SetOrigin(_convert_lps_ras(image.GetOrigin()))
    node.SetSpacing(image.GetSpacing())
    directions = np.diag([-1.0, -1.0, 1.0]) @ np.reshape(image.GetDirection(), (3, 3))
    node.SetIJKToRASDirections(directions.tolist())
    # Created before the voxels are set, so that the display does not compute a window from them; the caller sets it.
    node.CreateDefaultDisplayNodes()
    if node_class == "vtkMRMLScalarVolumeNode":
        node.GetDisplayNode().AutoWindowLevelOff()
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayViewFromImage(image))
    return node


def convert_to_sitk(node: Any) -> sitk.Image:
    """The voxels and grid of a volume node as a SimpleITK image (a copy)."""
    image = sitk.GetImageFromArray(slicer.util.arrayFromVolume(node))
    image.SetSpacing(node.GetSpacing())
    image.SetOrigin(_convert_lps_ras(node.GetOrigin()))
    directions = [[0.0] * 3 for _ in range(3)]
    node.GetIJKToRASDirections(directions)
    image.SetDirection((np.diag([-1.0, -1.0, 1.0]) @ np.array(directions)).ravel().tolist())
    return image


def get_ijk_to_ras(node: Any) -> vtk.vtkMatrix4x4:
    """The 4 by 4 matrix from voxel index (i, j, k) to RAS position in mm."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def _convert_lps_ras(point: tuple[float, ...]) -> tuple[float, float, float]:
    return -point[0], -point[1], point[2]


def get_ijk_to_world(node: Any) -> np.ndarray:
    """The matrix (4, 4) from voxel indices (i, j, k) to world RAS (mm), including the node's transforms.

    Raises UserError if a transform is not linear, such as the acquisition transform of an irregular series.
    """
    matrix: np.ndarray = get_parent_to_world(node) @ slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(node))
    return matrix


def get_parent_to_world(node: Any) -> np.ndarray:
    """The transform (4, 4) that ``node`` is under, identity if there is none. Raises UserError if it is not linear."""
    transform = node.GetParentTransformNode()
    matrix = vtk.vtkMatrix4x4()
    if transform is not None:
        if not transform.IsTransformToWorldLinear():
            raise UserError(
                f"{node.GetName()} is under a transform that is not linear ({transform.GetName()}).",
                "Harden the transform first (module Transforms), then segment the hardened volume.",
            )
        transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


@dataclass(frozen=True)
class CTPlacement:
    """Where a CT was at one time, such as when it was exported.

    ``from_world`` (4, 4) maps the world to the CT's own space, before its transforms; ``grid`` (4, 4) maps voxel
    indices (i, j, k) to that space.
    """

    from_world: np.ndarray
    grid: np.ndarray

    @classmethod
    def from_volume(cls, ct_node: Any) -> CTPlacement:
        """Where a CT is now. Raises UserError if it is under a transform that is not linear."""
        return cls(np.linalg.inv(get_parent_to_world(ct_node)), _get_ijk_to_ras(ct_node))

    def to_own_space(self, ct_node: Any) -> np.ndarray:
        """The matrix (4, 4) from the world as it was then to the CT's own space as it is now.

        Hardening a transform moves the CT in its own space; putting it under another transform does not.
        """
        now = _get_ijk_to_ras(ct_node)
        # Without rounding errors in the usual case.
        return self.from_world if np.array_equal(self.grid, now) else now @ np.linalg.inv(self.grid) @ self.from_world


def _get_ijk_to_ras(node: Any) -> np.ndarray:
    return np.array(slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(node)))


def place_under(ct_node: Any, volume: Any, from_world: np.ndarray) -> None:
    """Put a volume given in world space under the transform of ``ct_node``, so that it moves with the CT.

    ``from_world`` (4, 4) maps that space to the CT's own space (see :meth:`CTPlacement.to_own_space`).
    """
    if not np.array_equal(from_world, np.eye(4)):
        matrix = from_world @ slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(volume))
        volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    volume.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())


# Grids count as equal if they drift apart by less than this share of a voxel.
_SAME_VOXEL = 0.01


def add_label_volume(voxels: np.ndarray, box: Box, ct_node: Any, name: str) -> Any:
    """Add ``voxels`` (z, y, x), which cover ``box`` in the grid of ``ct_node``, as a vtkMRMLLabelMapVolumeNode.

    The node is put under the transform of the CT and is hidden from other modules.
    """
    node = add_node("vtkMRMLLabelMapVolumeNode", name, hidden=True)
    set_voxels(node, voxels, box, ct_node)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())
    return node


def set_voxels(node: Any, voxels: np.ndarray, box: Box, reference: Any) -> None:
    """Give a volume node the values ``voxels`` and the geometry of ``box`` in the grid of ``reference``."""
    matrix = get_ijk_to_ras(reference)
    first = [part.start for part in reversed(box)]
    origin = matrix.MultiplyPoint([*first, 1.0])
    for row in range(3):
        matrix.SetElement(row, 3, origin[row])
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(voxels))


def find_box_in_grid(node: Any, reference: Any, in_own_space: bool = False) -> Box | None:
    """The box of ``reference``'s grid that the voxels of ``node`` cover; None unless they are voxels of that grid.

    ``in_own_space`` compares the grids without the transforms that the nodes are under.
    """
    if not in_own_space and node.GetTransformNodeID() != reference.GetTransformNodeID():
        return None
    between = vtk.vtkMatrix4x4()
    to_reference = get_ijk_to_ras(reference)
    to_reference.Invert()
    vtk.vtkMatrix4x4.Multiply4x4(to_reference, get_ijk_to_ras(node), between)
    matrix = slicer.util.arrayFromVTKMatrix(between)
    size = np.array(node.GetImageData().GetDimensions())
    offset = np.rint(matrix[:3, 3])
    drift = np.abs(matrix[:3, :3] - np.eye(3)) @ size + np.abs(matrix[:3, 3] - offset)
    last = offset + size
    if drift.max() > _SAME_VOXEL or offset.min() < 0 or (last > reference.GetImageData().GetDimensions()).any():
        return None
    z, y, x = (slice(int(start), int(stop)) for start, stop in zip(offset[::-1], last[::-1], strict=True))
    return z, y, x


def get_relative_box(box: Box, whole: Box) -> Box:
    """``box`` counted from the start of ``whole``."""
    z, y, x = (
        slice(part.start - around.start, part.stop - around.start) for part, around in zip(box, whole, strict=True)
    )
    return z, y, x


def merge_boxes(*boxes: Box) -> Box:
    """The smallest box that contains all of these boxes."""
    z, y, x = (
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )
    return z, y, x
