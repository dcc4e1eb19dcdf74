"""Volumes under a transform: where they are in the patient, and how others come along."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

from DCASegmentationLib.errors import UserError
from DCASegmentationLib.scene.volumes import index_to_ras


def index_to_world(node: Any) -> np.ndarray:
    """The matrix (4, 4) from voxel indices (i, j, k) to world RAS (mm), transforms of the node included.

    Raises UserError for a transform that is not linear, such as the acquisition transform of an irregular series.
    """
    return parent_to_world(node) @ _array(index_to_ras(node))


def parent_to_world(node: Any) -> np.ndarray:
    """The linear transform (4, 4) that ``node`` is under, the identity if none. Raises UserError if not linear."""
    transform = node.GetParentTransformNode()
    matrix = vtk.vtkMatrix4x4()
    if transform is not None:
        if not transform.IsTransformToWorldLinear():
            raise UserError(
                f"{node.GetName()} is under a transform that is not linear ({transform.GetName()}).",
                "Harden it first (module Transforms), then segment the hardened volume.",
            )
        transform.GetMatrixTransformToWorld(matrix)
    return _array(matrix)


def place_under(ct_node: Any, volume: Any, from_world: np.ndarray) -> None:
    """Put a volume that lies in the world under the transform of ``ct_node``, so that it follows when that changes.

    ``from_world`` (4, 4) leads from the world to the space of the CT before the transform, at the time at which the
    volume was made from it.
    """
    if not np.array_equal(from_world, np.eye(4)):
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy((from_world @ _array(index_to_ras(volume))).ravel().tolist())
        volume.SetIJKToRASMatrix(matrix)
    volume.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())


def _array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
