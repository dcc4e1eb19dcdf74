"""The preview of clicks in the slice views: outlines of the voxels that would be added and removed, and of a box."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.finding_view import FindingVoxels, extract_surface
from DCASegmentationLib.scene.nodes import add_singleton_node, get_singleton_node

_MODEL = "vtkMRMLModelNode"
# The two colors differ for color-blind users too, and from all organs' yellow finding outline.
_OUTLINES = {
    "added": ("DCASegmentation.clicks.added", "Clicks add", (0.0, 0.9, 1.0)),
    "removed": ("DCASegmentation.clicks.removed", "Clicks remove", (1.0, 0.45, 0.0)),
    "box": ("DCASegmentation.clicks.box", "Box around an organ", (1.0, 1.0, 1.0)),
}
_THICKNESS = 3


def show_preview(nodes: CaseNodes, box: Box, before: np.ndarray, after: np.ndarray) -> None:
    """Outline where labels (z, y, x) in ``box`` of the CT's grid change: blue where they grow, orange where they go."""
    changed = before != after
    for kind, mask in (("added", changed & (after != 0)), ("removed", changed & (after == 0))):
        _show_outline(kind, FindingVoxels(nodes.ct, box, mask) if mask.any() else None)


def show_box(corners: tuple[tuple[float, float, float], tuple[float, float, float]]) -> None:
    """Outline the box between two opposite ``corners`` (RAS, mm, world)."""
    sides = zip(*corners, strict=True)
    box = vtk.vtkCubeSource()
    box.SetBounds(*(bound for side in sides for bound in sorted(side)))
    box.Update()
    _show("box", box.GetOutput(), None)


def hide_box() -> None:
    """Hide the outline of the box."""
    _show_outline("box", None)


def hide_preview() -> None:
    """Hide all outlines."""
    for kind in _OUTLINES:
        _show_outline(kind, None)


def _show_outline(kind: str, voxels: FindingVoxels | None) -> None:
    node = _find_node(kind)
    if voxels is None:
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(False)
        return
    _show(kind, extract_surface(voxels), voxels.volume.GetTransformNodeID())


def _show(kind: str, surface: Any, transform: str | None) -> None:
    """Outline ``surface`` (vtkPolyData), which lies under the transform node with the ID ``transform``."""
    tag, name, _color = _OUTLINES[kind]
    node = _find_node(kind) or add_singleton_node(_MODEL, tag, name, hidden=True)
    display = _get_display_node(node, kind)
    before = node.StartModify()
    node.SetAndObservePolyData(surface)
    node.SetAndObserveTransformNodeID(transform)
    display.SetVisibility(True)
    node.EndModify(before)


def _find_node(kind: str) -> Any | None:
    return get_singleton_node(_MODEL, _OUTLINES[kind][0])


def _get_display_node(node: Any, kind: str) -> Any:
    """The display node of an outline, created again if closing the scene has removed it."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetColor(_OUTLINES[kind][2])
        display.SetVisibility2D(True)
        display.SetVisibility3D(False)
        display.SetSliceIntersectionThickness(_THICKNESS)
    return node.GetDisplayNode()
