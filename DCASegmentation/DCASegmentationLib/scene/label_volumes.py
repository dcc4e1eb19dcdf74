"""Label maps of a case as volume nodes: no larger than what is in them, on the voxels of the CT."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer.util
import vtk

from DCASegmentationLib.scene.volumes import index_to_ras, new_node

Box = tuple[slice, slice, slice]

# Grids count as the same while they drift apart by less than this share of a voxel.
_SAME_VOXEL = 0.01


def add_label_volume(voxels: np.ndarray, box: Box, ct_node: Any, name: str) -> Any:
    """Add ``voxels`` (z, y, x), which are ``box`` of the grid of ``ct_node``, as a vtkMRMLLabelMapVolumeNode.

    The node comes under the transform of the CT, and no module offers it.
    """
    node = new_node("vtkMRMLLabelMapVolumeNode", name, hidden=True)
    put_voxels(node, voxels, box, ct_node)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())
    return node


def put_voxels(node: Any, voxels: np.ndarray, box: Box, reference: Any) -> None:
    """Give a volume node the values ``voxels`` and the geometry of ``box`` in the grid of ``reference``."""
    matrix = index_to_ras(reference)
    first = [part.start for part in reversed(box)]
    origin = matrix.MultiplyPoint([*first, 1.0])
    for row in range(3):
        matrix.SetElement(row, 3, origin[row])
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(voxels))


def box_within(node: Any, reference: Any) -> Box | None:
    """Where the voxels of one volume lie in the grid of another; None unless they are voxels of it."""
    if node.GetTransformNodeID() != reference.GetTransformNodeID():
        return None
    between = vtk.vtkMatrix4x4()
    to_reference = index_to_ras(reference)
    to_reference.Invert()
    vtk.vtkMatrix4x4.Multiply4x4(to_reference, index_to_ras(node), between)
    matrix = np.array([[between.GetElement(row, column) for column in range(4)] for row in range(4)])
    size = np.array(node.GetImageData().GetDimensions())
    offset = np.rint(matrix[:3, 3])
    drift = np.abs(matrix[:3, :3] - np.eye(3)) @ size + np.abs(matrix[:3, 3] - offset)
    last = offset + size
    if drift.max() > _SAME_VOXEL or offset.min() < 0 or (last > reference.GetImageData().GetDimensions()).any():
        return None
    z, y, x = (slice(int(start), int(stop)) for start, stop in zip(offset[::-1], last[::-1], strict=True))
    return z, y, x


def joined_box(*boxes: Box) -> Box:
    """The smallest box around these."""
    z, y, x = (
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )
    return z, y, x
