"""Attention, uncertainty and the deciding expert as volumes to lay over the CT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import SimpleITK as sitk

from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.scene.case_record import attention_name
from DCASegmentationLib.scene.colors import expert_colors, scale_colors
from DCASegmentationLib.scene.legend import add_name_legend, add_scale_legend
from DCASegmentationLib.scene.volumes import add_volume

# The least value that is displayed: 0 is what lies outside of the body.
LEAST = 1e-4
# Maps that a case has one of: name of the volume, title of its legend, colors.
_SINGLE = {
    "entropy": ("Uncertainty (entropy)", "Uncertainty", "Inferno"),
    "disagreement": ("Disagreement", "Disagreement", "Inferno"),
}


def show_attention(maps: Mapping[str, sitk.Image], level: int) -> dict[str, Any]:
    """Add the attention maps of one level, by expert ("head", "medium", "tail"), values 0 to 1 that sum to 1.

    Returns the vtkMRMLScalarVolumeNode of each expert.
    """
    return {expert: show_named_map(image, attention_name(level, expert)) for expert, image in maps.items()}


def show_map(image: sitk.Image, name: str, title: str, colors: str) -> Any:
    """Add a map of values from 0 to 1 with its color scale (dark is 0, bright is 1) and a legend.

    ``title`` stands over the legend; ``colors`` is "Viridis" or "Inferno"; 0 is transparent. Returns the
    vtkMRMLScalarVolumeNode.
    """
    node = add_volume(image, name, "vtkMRMLScalarVolumeNode", hidden=True)
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(scale_colors(colors).GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetLowerThreshold(LEAST)
    display.SetUpperThreshold(1.0)
    display.SetApplyThreshold(True)
    add_scale_legend(node, title)
    return node


def show_named_map(image: sitk.Image, name: str) -> Any:
    """Add the map with this name (see ``case_record.MAP_NAMES``) as a volume node."""
    if name == "deciding_expert":
        return show_deciding_expert(image)
    if name in _SINGLE:
        return show_map(image, *_SINGLE[name])
    _, expert, level = name.split("_")
    number = level.removeprefix("level")
    # Short: a long title reaches over the anatomy.
    title = f"Attention: {expert}"
    return show_map(image, f"{expert.capitalize()} expert attention (level {number})", title, "Viridis")


def show_deciding_expert(image: sitk.Image, name: str = "Expert that decided") -> Any:
    """Add the label map of deciding experts (0 background, 1 head, 2 medium, 3 tail) with names, colors and legend.

    Returns the vtkMRMLLabelMapVolumeNode.
    """
    node = add_volume(image, name, "vtkMRMLLabelMapVolumeNode", hidden=True)
    node.GetDisplayNode().SetAndObserveColorNodeID(expert_colors().GetID())
    add_name_legend(node, "Expert that decided", len(EXPERTS) + 1)
    return node
