"""A map of a case laid over its CT in the slice views: who decided, where the experts attended, how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.colors import scale_colors

# The maps that can be chosen, in the order of the panel.
NONE, DECIDING, UNCERTAINTY, DISAGREEMENT = "none", "deciding", "uncertainty", "disagreement"
EXPERT_NAMES = tuple(name for _, name, _ in EXPERTS)
# Names of the slice views of the comparison, by expert.
COMPARISON_VIEWS = {name: f"DCA{name.capitalize()}" for name in EXPERT_NAMES}

_FILL_BEFORE = "DCASegmentation.fill_before_map"


@dataclass(frozen=True)
class MapStyle:
    """How a map is shown: ``opacity`` over the CT, values below ``threshold`` left out (both 0 to 1).

    ``colors`` names the color map of scales (a key of ``palette.COLOR_MAPS``); the deciding expert keeps its own.
    """

    opacity: float = 0.5
    threshold: float = 0.0
    colors: str = "Viridis"
    legend: bool = True


def available_maps(nodes: CaseNodes, level: int) -> list[str]:
    """The maps a case has at a level of attention; that of the deciding expert and of uncertainty have no level."""
    found = [NONE]
    found += [DECIDING] if nodes.deciding_expert is not None else []
    found += [name for name in EXPERT_NAMES if name in nodes.attention.get(level, {})]
    found += [UNCERTAINTY] if nodes.entropy is not None else []
    return found + ([DISAGREEMENT] if nodes.disagreement is not None else [])


def map_node(nodes: CaseNodes, level: int, choice: str) -> Any | None:
    """The volume node of a chosen map; None for "none" and for a map the case lacks."""
    single = {DECIDING: nodes.deciding_expert, UNCERTAINTY: nodes.entropy, DISAGREEMENT: nodes.disagreement}
    return single[choice] if choice in single else nodes.attention.get(level, {}).get(choice)


def show_map_over_ct(nodes: CaseNodes, node: Any | None, style: MapStyle) -> None:
    """Lay one map over the CT in the slice views that show this CT, in all if none does; None takes the map away.

    Under a map the organs are outlined only: their fill would mix with the map's colors.
    """
    if node is not None:
        apply_style(node, style)
    for composite in _composites_with(nodes):
        lay_over(composite, nodes, node, style.opacity)
    _fill_organs(nodes.segmentation, node is None)


def lay_over(composite: Any, nodes: CaseNodes, node: Any | None, opacity: float) -> None:
    """Set the layers of one vtkMRMLSliceCompositeNode: a map of the case, or none, over its CT."""
    layers = _layers(composite)
    flags = composite.GetInteractionFlags()
    before = composite.StartModify()
    if nodes.ct is not None:
        composite.SetBackgroundVolumeID(nodes.ct.GetID())
    # What else the user has put into these layers stays until a map needs the place.
    _take_away(composite, nodes)
    if node is not None and node.IsA("vtkMRMLLabelMapVolumeNode"):
        composite.SetLabelVolumeID(node.GetID())
        composite.SetLabelOpacity(opacity)
    elif node is not None:
        composite.SetForegroundVolumeID(node.GetID())
        composite.SetForegroundOpacity(opacity)
    if _layers(composite) != layers:
        # Legends follow the layers only where these flags say that layers were changed.
        composite.SetInteractionFlags(composite.ForegroundVolumeFlag | composite.LabelVolumeFlag)
    composite.EndModify(before)
    composite.SetInteractionFlags(flags)


def take_maps_away(nodes: CaseNodes) -> None:
    """Show the maps of a case in no view any more, also of one whose other nodes were deleted."""
    for composite in _composites():
        _take_away(composite, nodes)
    _fill_organs(nodes.segmentation, True)


def _take_away(composite: Any, nodes: CaseNodes) -> None:
    own = {each.GetID() for each in nodes.maps()}
    if composite.GetForegroundVolumeID() in own:
        composite.SetForegroundVolumeID(None)
    if composite.GetLabelVolumeID() in own:
        composite.SetLabelVolumeID(None)


def _layers(composite: Any) -> tuple[str | None, ...]:
    return composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetLabelVolumeID()


def apply_style(node: Any, style: MapStyle) -> None:
    """Colors, threshold and legend of a map."""
    display = node.GetDisplayNode()
    if not node.IsA("vtkMRMLLabelMapVolumeNode"):
        before = display.StartModify()
        display.SetAndObserveColorNodeID(scale_colors(style.colors).GetID())
        display.SetLowerThreshold(style.threshold)
        display.SetApplyThreshold(style.threshold > 0.0)
        display.EndModify(before)
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(style.legend)


def show_side_by_side(composites: Mapping[str, Any], nodes: CaseNodes, level: int, style: MapStyle) -> None:
    """Lay the attention to each expert over the CT in the view of that expert; ``composites`` is by expert."""
    for expert, composite in composites.items():
        node = nodes.attention.get(level, {}).get(expert)
        if node is not None:
            apply_style(node, style)
        lay_over(composite, nodes, node, style.opacity)
    _fill_organs(nodes.segmentation, False)


def _composites_with(nodes: CaseNodes) -> list[Any]:
    """The views of the case: those with its CT in the background. The views of the comparison are not among them."""
    usual = [each for each in _composites() if each.GetLayoutName() not in COMPARISON_VIEWS.values()]
    if nodes.ct is None:
        return usual
    return [each for each in usual if each.GetBackgroundVolumeID() == nodes.ct.GetID()] or usual


def _composites() -> list[Any]:
    scene = slicer.mrmlScene
    count = scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")
    return [scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode") for index in range(count)]


def _fill_organs(segmentation: Any, filled: bool) -> None:
    """Take the fill of the organs away, once, and give back what it was."""
    display = segmentation.GetDisplayNode()
    if display is None:
        return
    before = display.GetAttribute(_FILL_BEFORE)
    if filled and before is not None:
        display.SetVisibility2DFill(before == "1")
        display.RemoveAttribute(_FILL_BEFORE)
    elif not filled and before is None:
        display.SetAttribute(_FILL_BEFORE, str(int(display.GetVisibility2DFill())))
        display.SetVisibility2DFill(False)
