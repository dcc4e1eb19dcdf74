"""Color nodes for maps from 0 to 1 and for the deciding expert, made once per scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer

from DCASegmentationLib.figures.palette import EXPERTS, color_table

_TAG = "DCASegmentation.colors"


def scale_colors(name: str) -> Any:
    """The vtkMRMLColorTableNode of a perceptual color map (a key of ``palette.COLOR_MAPS``).

    It is a node of our own that is saved with the scene: Slicer's files of these colors are not part of slicer-core.
    """
    table = color_table(name)
    return _color_node(f"{name} (0 to 1)", [(f"{i / (len(table) - 1):.2f}", *rgb, 255) for i, rgb in enumerate(table)])


def expert_colors() -> Any:
    """The vtkMRMLColorTableNode that names and colors the experts; 0, the background, is transparent."""
    entries = [("background", 0, 0, 0, 0), *((f"{name} expert", *color, 255) for _, name, color in EXPERTS)]
    return _color_node("DCA experts", entries)


def _color_node(name: str, entries: Sequence[tuple[Any, ...]]) -> Any:
    if (node := _existing(name)) is not None:
        return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", name)
    node.SetTypeToUser()
    node.SetNumberOfColors(len(entries))
    node.GetLookupTable().SetRange(0, len(entries) - 1)
    for index, (label, red, green, blue, opacity) in enumerate(entries):
        node.SetColor(index, label, red / 255.0, green / 255.0, blue / 255.0, opacity / 255.0)
    node.SetAttribute("Category", "DCA")
    node.SetAttribute(_TAG, name)
    # A node hidden from editors would not be saved with the scene. Inside Slicer only saved maps need their colors.
    node.SetHideFromEditors(False)
    node.SetSaveWithScene(not hasattr(slicer, "app"))
    return node


def save_colors(saved: bool) -> None:
    """Whether the color nodes are saved with the scene, as the maps that need them are."""
    for node in _own_nodes():
        node.SetSaveWithScene(saved)


def _existing(name: str) -> Any | None:
    return next((node for node in _own_nodes() if node.GetAttribute(_TAG) == name), None)


def _own_nodes() -> list[Any]:
    scene = slicer.mrmlScene
    count = scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")
    nodes = [scene.GetNthNodeByClass(index, "vtkMRMLColorTableNode") for index in range(count)]
    return [node for node in nodes if node.GetAttribute(_TAG) is not None]
