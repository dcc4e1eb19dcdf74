"""Attention, uncertainty and the deciding expert as volumes to lay over the CT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import SimpleITK as sitk

from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.scene.colors import expert_colors, scale_colors
from DCASegmentationLib.scene.legend import add_name_legend, add_scale_legend
from DCASegmentationLib.scene.volumes import add_volume


def show_attention(maps: Mapping[str, sitk.Image], level: int, threshold: float = 0.0) -> dict[str, Any]:
    """Add the attention maps of one level, by expert ("head", "medium", "tail"), values 0 to 1 that sum to 1.

    Returns the vtkMRMLScalarVolumeNode of each expert.
    """
    nodes = {}
    for expert, image in maps.items():
        name = f"{expert.capitalize()} expert attention (level {level})"
        nodes[expert] = show_map(image, name, f"Attention to the {expert} expert", "Viridis", threshold)
    return nodes


def show_map(image: sitk.Image, name: str, title: str, colors: str, threshold: float = 0.0) -> Any:
    """Add a map of values from 0 to 1 with its color scale (dark is 0, bright is 1) and a legend.

    ``title`` stands over the legend; ``colors`` is "Viridis" or "Inferno"; values below ``threshold`` are left
    transparent. Returns the vtkMRMLScalarVolumeNode.
    """
    node = add_volume(image, name, "vtkMRMLScalarVolumeNode")
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(scale_colors(colors).GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetLowerThreshold(threshold)
    display.SetUpperThreshold(1.0)
    display.SetApplyThreshold(threshold > 0.0)
    add_scale_legend(node, title)
    return node


def show_deciding_expert(image: sitk.Image, name: str = "Expert that decided") -> Any:
    """Add the label map of deciding experts (0 background, 1 head, 2 medium, 3 tail) with names, colors and legend.

    Returns the vtkMRMLLabelMapVolumeNode.
    """
    node = add_volume(image, name, "vtkMRMLLabelMapVolumeNode")
    node.GetDisplayNode().SetAndObserveColorNodeID(expert_colors().GetID())
    add_name_legend(node, "Expert that decided", len(EXPERTS) + 1)
    return node
