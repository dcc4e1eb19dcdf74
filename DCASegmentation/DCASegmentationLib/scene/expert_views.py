"""Maps over the CT in the slice views: dominant expert, attention to each expert, uncertainty, and disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import slicer
import slicer.util

from dcaseg.rendering.layout import EXPERTS
from DCASegmentationLib.scene import maps as map_files
from DCASegmentationLib.scene.case_record import CaseNodes, find_cases, get_attention_name
from DCASegmentationLib.scene.maps import MIN_SHARE, get_expert_colors, get_scale_colors, refresh_legend

# The maps that the user can select; the parameter node stores these names.
NONE, DOMINANT, UNCERTAINTY, DISAGREEMENT = "none", "deciding", "uncertainty", "disagreement"
EXPERT_NAMES = tuple(name for _, name, _ in EXPERTS)
# Names of the slice views of the comparison, by expert.
COMPARISON_VIEWS = {name: f"DCA{name.capitalize()}" for name in EXPERT_NAMES}

_FILL_BEFORE = "DCASegmentation.fill_before_map"


@dataclass(frozen=True)
class MapStyle:
    """How a map is shown: its ``opacity`` over the CT and the ``threshold`` below which it is hidden (both 0 to 1).

    ``colors`` is the color map of scales (a key of ``rendering.layout.COLOR_MAPS``); the dominant-expert map keeps its
    own colors.
    """

    opacity: float = 0.5
    threshold: float = 0.0
    colors: str = "Viridis"
    legend: bool = True


def list_choices(nodes: CaseNodes, level: int) -> list[str]:
    """The maps that can be selected for a case, with attention at ``level``; the other maps have no level."""
    available = map_files.list_available_maps(nodes)
    order = (DOMINANT, *EXPERT_NAMES, UNCERTAINTY, DISAGREEMENT)
    return [NONE, *(choice for choice in order if get_map_name(level, choice) in available)]


def get_map_name(level: int, choice: str) -> str:
    """The name of a selected map (see ``case_record.MAP_NAMES``); empty for "none"."""
    single = {NONE: "", DOMINANT: "dominant_expert", UNCERTAINTY: "entropy", DISAGREEMENT: "disagreement"}
    return single[choice] if choice in single else get_attention_name(level, choice)


def get_map_node(nodes: CaseNodes, level: int, choice: str) -> Any | None:
    """The volume node of a selected map, loaded if necessary; None for "none" and if the case lacks the map."""
    name = get_map_name(level, choice)
    return map_files.load_map_volume(nodes, name) if name else None


def get_initial_threshold(choice: str) -> float:
    """The initial threshold of a map: an equal share of three experts, or a low uncertainty."""
    return 0.1 if choice in (UNCERTAINTY, DISAGREEMENT) else round(1 / 3, 2)


def show_map_over_ct(nodes: CaseNodes, node: Any | None, style: MapStyle, may_switch: bool = False) -> None:
    """Show a map over the CT in the slice views that show this CT; None removes the map.

    The views do not switch to this CT, because the user may be looking at another patient. Only with ``may_switch``,
    after the user chose a map, do all views switch to it if none shows it. Other views lose the maps of this case.

    While a map is shown, organs are only outlined, because their fill would mix with the map's colors.
    """
    composites = _list_slice_composites()
    if node is not None:
        apply_style(node, style)
        if may_switch and has_ct(nodes) and not any(_shows_ct(each, nodes) for each in select_in_layout(composites)):
            for composite in composites:
                composite.SetBackgroundVolumeID(nodes.ct.GetID())
    changed = [
        set_map_layer(composite, nodes, node if _shows_ct(composite, nodes) else None, style.opacity)
        for composite in composites
    ]
    if node is not None and any(changed):
        refresh_legend(node, style.legend)
    _fill_organs(nodes, node is None)


def set_map_layer(composite: Any, nodes: CaseNodes, node: Any | None, opacity: float) -> bool:
    """Set the map of the case, or none, that one vtkMRMLSliceCompositeNode shows over its CT; the CT itself stays.

    Returns whether the layers changed.
    """
    layers = _get_volume_ids(composite)
    flags = composite.GetInteractionFlags()
    before = composite.StartModify()
    # Other volumes that the user selected for these layers stay until a map needs the layer.
    _remove_maps(composite, nodes)
    if node is not None and node.IsA("vtkMRMLLabelMapVolumeNode"):
        composite.SetLabelVolumeID(node.GetID())
        composite.SetLabelOpacity(opacity)
    elif node is not None:
        composite.SetForegroundVolumeID(node.GetID())
        composite.SetForegroundOpacity(opacity)
    wanted = _get_volume_ids(composite)
    if wanted != layers:
        # Legends follow a change of layers only if these flags are set.
        composite.SetInteractionFlags(composite.ForegroundVolumeFlag | composite.LabelVolumeFlag)
    composite.EndModify(before)
    if node is not None and _get_volume_ids(composite) != wanted:
        # The view's controller does not list hidden volumes and may have reset the layer; set the map again.
        if node.IsA("vtkMRMLLabelMapVolumeNode"):
            composite.SetLabelVolumeID(node.GetID())
        else:
            composite.SetForegroundVolumeID(node.GetID())
    composite.SetInteractionFlags(flags)
    return wanted != layers


def remove_maps_from_views(nodes: CaseNodes) -> None:
    """Remove the maps of a case from all views, even if the other nodes of the case were deleted."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        _remove_maps(composite, nodes)
    _fill_organs(nodes, True)


def _remove_maps(composite: Any, nodes: CaseNodes) -> None:
    own = {each.GetID() for each in nodes.maps()}
    if composite.GetForegroundVolumeID() in own:
        composite.SetForegroundVolumeID(None)
    if composite.GetLabelVolumeID() in own:
        composite.SetLabelVolumeID(None)


def _get_volume_ids(composite: Any) -> tuple[str | None, ...]:
    return composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetLabelVolumeID()


def apply_style(node: Any, style: MapStyle) -> None:
    """Set colors, threshold, and legend of a map. The value 0, outside the body, is never shown."""
    display = node.GetDisplayNode()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        display.SetAndObserveColorNodeID(get_expert_colors().GetID())
    else:
        before = display.StartModify()
        display.SetAndObserveColorNodeID(get_scale_colors(style.colors).GetID())
        display.SetLowerThreshold(max(style.threshold, MIN_SHARE))
        display.SetApplyThreshold(True)
        display.EndModify(before)
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(style.legend)


def show_side_by_side(composites: Mapping[str, Any], nodes: CaseNodes, level: int, style: MapStyle) -> None:
    """Show the attention to each expert over the CT in that expert's view; ``composites`` maps experts to views.

    Views in which the user looks at another CT show no map.
    """
    for expert, composite in composites.items():
        node = get_map_node(nodes, level, expert) if _shows_ct(composite, nodes) else None
        if node is not None:
            apply_style(node, style)
        if set_map_layer(composite, nodes, node, style.opacity) and node is not None:
            refresh_legend(node, style.legend)
    _fill_organs(nodes, False)


def refresh_legends(nodes: CaseNodes, level: int, shown: bool) -> None:
    """Show the legends of the comparison in views that were created after the legends."""
    for expert in EXPERT_NAMES:
        node = get_map_node(nodes, level, expert)
        if node is not None:
            refresh_legend(node, shown)


def has_ct(nodes: CaseNodes) -> bool:
    """Whether the CT of the case is still in the scene."""
    return nodes.ct is not None and bool(slicer.mrmlScene.IsNodePresent(nodes.ct))


def select_in_layout(composites: Sequence[Any]) -> list[Any]:
    """Those of these vtkMRMLSliceCompositeNodes whose view is in the current layout; all if none is, as in scripts."""
    views = [slicer.mrmlScene.GetSingletonNode(each.GetLayoutName(), "vtkMRMLSliceNode") for each in composites]
    seen = [each for each, view in zip(composites, views, strict=True) if view is not None and view.IsMappedInLayout()]
    return seen or list(composites)


def _shows_ct(composite: Any, nodes: CaseNodes) -> bool:
    return has_ct(nodes) and composite.GetBackgroundVolumeID() == nodes.ct.GetID()


def _list_slice_composites() -> list[Any]:
    """The slice views without those of the comparison."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [each for each in composites if each.GetLayoutName() not in COMPARISON_VIEWS.values()]


def _fill_organs(nodes: CaseNodes, filled: bool) -> None:
    """Turn off the fill of the organs, or restore its previous state, in all segmentations of the CT."""
    for each in {nodes.segmentation, *(case.segmentation for case in find_cases(nodes.ct))}:
        display = each.GetDisplayNode()
        before = display.GetAttribute(_FILL_BEFORE) if display is not None else None
        if display is None:
            continue
        if filled and before is not None:
            display.SetVisibility2DFill(before == "1")
            display.RemoveAttribute(_FILL_BEFORE)
        elif not filled and before is None and display.GetVisibility2DOutline():
            # Only if there is an outline: with neither fill nor outline Slicer logs a warning and shows nothing.
            display.SetAttribute(_FILL_BEFORE, str(int(display.GetVisibility2DFill())))
            display.SetVisibility2DFill(False)
