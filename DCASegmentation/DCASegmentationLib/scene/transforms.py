"""Volumes under a transform: where they are in the patient, and how others come along."""

from __future__ import annotations

from collections.abc import Iterable
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


def under_transform_of(ct_node: Any, in_its_space: Iterable[Any], in_the_world: Iterable[Any]) -> None:
    """Put nodes under the transform of ``ct_node``, so that they follow when it changes.

    ``in_its_space`` have coordinates of the CT before the transform; volumes ``in_the_world`` were made from the
    transformed CT and stay where they are.
    """
    transform = ct_node.GetTransformNodeID()
    for node in in_its_space:
        node.SetAndObserveTransformNodeID(transform)
    if transform is None:
        return
    from_world = np.linalg.inv(parent_to_world(ct_node))
    for node in in_the_world:
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy((from_world @ _array(index_to_ras(node))).ravel().tolist())
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveTransformNodeID(transform)


def _array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
