"""The volumes of a result follow its segmentation and its CT when a user transforms these or hardens their transform.

Label maps belong to the voxels of the segmentation, and maps to those of the CT. Both are hidden from modules, so users
cannot move them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import slicer.util

from dcaseg.errors import UserError
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.review_record import move_findings
from DCASegmentationLib.scene.segmentation import get_image_to_world, iter_layer_images
from DCASegmentationLib.scene.volumes import get_ijk_to_ras, get_parent_to_world

_GRIDS = "DCASegmentation.grids"
_SEGMENTATION, _CT = "segmentation", "ct"
_TOLERANCE = 1e-4  # mm


def note_grids(nodes: CaseNodes) -> None:
    """Record where the voxels of the segmentation and the CT are, so that hardening is recognized later.

    Call it whenever their volumes are where they belong. A node whose volumes are elsewhere keeps its earlier record.
    """
    noted = _read_grids(nodes)
    for name, leader, parts in _iter_movable_nodes(nodes):
        grid = _get_ijk_to_ras(leader)
        if grid is not None and not any(_has_other_transform(part, leader) for part in parts):
            noted[name] = grid
    text = json.dumps({name: grid.tolist() for name, grid in noted.items()}, sort_keys=True)
    if text != nodes.segmentation.GetAttribute(_GRIDS):
        nodes.segmentation.SetAttribute(_GRIDS, text)


def follow_transforms(nodes: CaseNodes) -> bool:
    """Move the volumes of a case to where its segmentation and its CT are now; returns whether any of them moved.

    A volume gets the same transform, or its own one is hardened. Volumes stay where they are if the voxels of the
    segmentation or the CT have changed in another way, such as by hardening a transform that is not linear; then
    :func:`require_together` raises an error.
    """
    noted, has_moved = _read_grids(nodes), False
    for name, leader, parts in _iter_movable_nodes(nodes):
        grid, before = _get_ijk_to_ras(leader), noted.get(name)
        astray = [part for part in parts if _has_other_transform(part, leader)]
        if not astray or grid is None or before is None:
            continue
        hardened = None
        for part in astray:
            if not _is_same(grid, before):
                matrix = _get_transform(part)
                if matrix is None or not _is_same(grid, matrix @ before):
                    continue
                part.HardenTransform()
                hardened = matrix
            part.SetAndObserveTransformNodeID(leader.GetTransformNodeID())
            has_moved = True
        if hardened is not None and name == _SEGMENTATION:
            move_findings(nodes.segmentation, hardened)
    if has_moved:
        note_grids(nodes)
    return has_moved


def require_together(nodes: CaseNodes) -> None:
    """Raises UserError unless the label maps of the review are where the segmentation is."""
    if any(_has_other_transform(part, nodes.segmentation) for part in nodes.list_label_maps()):
        raise UserError(
            f"{nodes.segmentation.GetName()} was moved away from the automatic result that it is compared with.",
            "Put the segmentation under the transform that it had before, or segment the CT again.",
        )


def _iter_movable_nodes(nodes: CaseNodes) -> Iterator[tuple[str, Any, list[Any]]]:
    """The nodes that users move, each with its name in the record and the volumes that follow it."""
    yield _SEGMENTATION, nodes.segmentation, [*nodes.list_label_maps(), *([] if nodes.ct is not None else nodes.maps())]
    if nodes.ct is not None:
        yield _CT, nodes.ct, nodes.maps()


def _has_other_transform(part: Any, leader: Any) -> bool:
    return bool(part.GetTransformNodeID() != leader.GetTransformNodeID())


def _is_same(grid: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(grid, other, rtol=0.0, atol=_TOLERANCE))


def _get_ijk_to_ras(leader: Any) -> np.ndarray | None:
    """The matrix from voxel indices to the node's own space; None if the segmentation has no voxels."""
    if not leader.IsA("vtkMRMLSegmentationNode"):
        return (
            None if leader.GetImageData() is None else np.array(slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(leader)))
        )
    return next((get_image_to_world(image) for _number, image in iter_layer_images(leader.GetSegmentation())), None)


def _get_transform(part: Any) -> np.ndarray | None:
    """The transform that a volume is under; None if it is not linear."""
    try:
        return get_parent_to_world(part)
    except UserError:
        return None


def _read_grids(nodes: CaseNodes) -> dict[str, np.ndarray]:
    try:
        content = json.loads(nodes.segmentation.GetAttribute(_GRIDS) or "{}")
        grids = {name: np.array(content[name], float) for name in (_SEGMENTATION, _CT) if name in content}
    except (ValueError, TypeError):
        return {}
    return {name: grid for name, grid in grids.items() if grid.shape == (4, 4)}
