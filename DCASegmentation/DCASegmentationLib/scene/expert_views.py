"""A map of a case laid over its CT in the slice views: who decided, where the experts attended, how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from dcaseg.rendering.layout import EXPERTS
from DCASegmentationLib.scene import maps as map_files
from DCASegmentationLib.scene.case_record import CaseNodes, attention_name, cases_of
from DCASegmentationLib.scene.maps import LEAST, expert_colors, refresh_legend, scale_colors

# The maps that can be chosen, in the order of the panel.
NONE, DOMINANT, UNCERTAINTY, DISAGREEMENT = "none", "deciding", "uncertainty", "disagreement"
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


def available_choices(nodes: CaseNodes, level: int) -> list[str]:
    """The maps a case has at a level of attention; that of the deciding expert and of uncertainty have no level."""
    there = map_files.available_maps(nodes)
    order = (DOMINANT, *EXPERT_NAMES, UNCERTAINTY, DISAGREEMENT)
    return [NONE, *(choice for choice in order if map_name(level, choice) in there)]


def map_name(level: int, choice: str) -> str:
    """The name of a chosen map (see ``case_record.MAP_NAMES``); empty for "none"."""
    single = {NONE: "", DOMINANT: "dominant_expert", UNCERTAINTY: "entropy", DISAGREEMENT: "disagreement"}
    return single[choice] if choice in single else attention_name(level, choice)


def map_node(nodes: CaseNodes, level: int, choice: str) -> Any | None:
    """The volume node of a chosen map, made where it was not shown yet; None for "none" and for a map not there."""
    name = map_name(level, choice)
    return map_files.map_volume(nodes, name) if name else None


def starting_threshold(choice: str) -> float:
    """Below which values a map is first left out: an even share of three experts, or a little uncertainty."""
    return 0.1 if choice in (UNCERTAINTY, DISAGREEMENT) else round(1 / 3, 2)


def show_map_over_ct(nodes: CaseNodes, node: Any | None, style: MapStyle) -> None:
    """Lay one map over the CT in the slice views that show this CT, in all if none does; None takes the map away.

    Under a map the organs are outlined only: their fill would mix with the map's colors.
    """
    if node is not None:
        apply_style(node, style)
    changed = [lay_over(composite, nodes, node, style.opacity) for composite in _composites_with(nodes)]
    if node is not None and any(changed):
        refresh_legend(node, style.legend)
    _fill_organs(nodes, node is None)


def lay_over(composite: Any, nodes: CaseNodes, node: Any | None, opacity: float) -> bool:
    """Set the layers of one vtkMRMLSliceCompositeNode: a map of the case, or none, over its CT.

    Returns whether other volumes are shown now.
    """
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
    wanted = _layers(composite)
    if wanted != layers:
        # Legends follow the layers only where these flags say that layers were changed.
        composite.SetInteractionFlags(composite.ForegroundVolumeFlag | composite.LabelVolumeFlag)
    composite.EndModify(before)
    if node is not None and _layers(composite) != wanted:
        # The bar of the view offers no hidden volumes: where another one was chosen there, it takes the map away.
        if node.IsA("vtkMRMLLabelMapVolumeNode"):
            composite.SetLabelVolumeID(node.GetID())
        else:
            composite.SetForegroundVolumeID(node.GetID())
    composite.SetInteractionFlags(flags)
    return wanted != layers


def take_maps_away(nodes: CaseNodes) -> None:
    """Show the maps of a case in no view any more, also of one whose other nodes were deleted."""
    for composite in _composites():
        _take_away(composite, nodes)
    _fill_organs(nodes, True)


def _take_away(composite: Any, nodes: CaseNodes) -> None:
    own = {each.GetID() for each in nodes.maps()}
    if composite.GetForegroundVolumeID() in own:
        composite.SetForegroundVolumeID(None)
    if composite.GetLabelVolumeID() in own:
        composite.SetLabelVolumeID(None)


def _layers(composite: Any) -> tuple[str | None, ...]:
    return composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetLabelVolumeID()


def apply_style(node: Any, style: MapStyle) -> None:
    """Colors, threshold and legend of a map. What is 0, outside of the body, is left out at any threshold."""
    display = node.GetDisplayNode()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        display.SetAndObserveColorNodeID(expert_colors().GetID())
    else:
        before = display.StartModify()
        display.SetAndObserveColorNodeID(scale_colors(style.colors).GetID())
        display.SetLowerThreshold(max(style.threshold, LEAST))
        display.SetApplyThreshold(True)
        display.EndModify(before)
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(style.legend)


def show_side_by_side(composites: Mapping[str, Any], nodes: CaseNodes, level: int, style: MapStyle) -> None:
    """Lay the attention to each expert over the CT in the view of that expert; ``composites`` is by expert."""
    for expert, composite in composites.items():
        node = map_node(nodes, level, expert)
        if node is not None:
            apply_style(node, style)
        if lay_over(composite, nodes, node, style.opacity) and node is not None:
            refresh_legend(node, style.legend)
    _fill_organs(nodes, False)


def refresh_legends(nodes: CaseNodes, level: int, shown: bool) -> None:
    """Let the legends of the comparison appear in views that came after them."""
    for expert in EXPERT_NAMES:
        node = map_node(nodes, level, expert)
        if node is not None:
            refresh_legend(node, shown)


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


def _fill_organs(nodes: CaseNodes, filled: bool) -> None:
    """Take the fill of the organs away, once, and give back what it was; in all segmentations of the CT."""
    for each in {nodes.segmentation, *(case.segmentation for case in cases_of(nodes.ct))}:
        display = each.GetDisplayNode()
        before = display.GetAttribute(_FILL_BEFORE) if display is not None else None
        if display is None:
            continue
        if filled and before is not None:
            display.SetVisibility2DFill(before == "1")
            display.RemoveAttribute(_FILL_BEFORE)
        elif not filled and before is None and display.GetVisibility2DOutline():
            # With neither fill nor outline Slicer would complain, and show nothing.
            display.SetAttribute(_FILL_BEFORE, str(int(display.GetVisibility2DFill())))
            display.SetVisibility2DFill(False)
