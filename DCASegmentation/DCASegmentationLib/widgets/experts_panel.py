"""The Experts section: expert maps over the CT, side by side, at the cursor, and as means by organ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qt
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from dcaseg.rendering.layout import COLOR_MAPS, EXPERTS, SHORT_EXPERT_TITLES
from DCASegmentationLib.event_loop import ModifiedObserver, SegmentationObserver, StepRunner, createTimer
from DCASegmentationLib.parameters import DCASegmentationParameterNode
from DCASegmentationLib.scene import expert_views
from DCASegmentationLib.scene.case_record import CaseNodes, get_attention_name
from DCASegmentationLib.scene.expert_attention import SegmentAttention, compute_segment_attention, update_chart
from DCASegmentationLib.scene.expert_views import MapStyle
from DCASegmentationLib.scene.maps import list_attention_levels, list_available_maps, load_map_volume, save_colors
from DCASegmentationLib.scene.probe import VoxelProbe, read_at
from DCASegmentationLib.scene.view_setup import (
    BAR_PLOT,
    COMPARISON,
    ViewLayouts,
    get_comparison_composites,
    get_comparison_sizes,
    place_comparison,
    register_comparison,
)
from DCASegmentationLib.widgets.tables import AttentionTable

_NOTHING = "\N{EN DASH}"


class CursorReadOut(VTKObservationMixin):
    """Shows organ, HU, attention, uncertainty, and disagreement at the cursor.

    Between :meth:`start` and :meth:`stop` it fills the labels ``cursorOrganLabel``, ``cursorAttentionLabel``,
    ``cursorUncertaintyLabel`` and ``cursorDisagreementLabel`` of ``ui``.
    """

    def __init__(self, ui: SimpleNamespace) -> None:
        VTKObservationMixin.__init__(self)
        self._ui = ui
        self._nodes: CaseNodes | None = None
        self._level = 0

    def setCase(self, nodes: CaseNodes | None, level: int) -> None:
        """Read values from this case; attention comes from ``level`` (1 to 4)."""
        self._nodes, self._level = nodes, level

    def start(self) -> None:
        """Follow the mouse in the slice views."""
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None:
            self.addObserver(crosshair, slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent, self._onMoved)

    def stop(self) -> None:
        """Stop following the mouse and clear the labels."""
        self.removeObservers()
        self._show(VoxelProbe())

    def _onMoved(self, crosshair: Any, event: str) -> None:
        ras = [0.0, 0.0, 0.0]
        values = VoxelProbe()
        if crosshair.GetCursorPositionRAS(ras) and self._nodes is not None:
            values = read_at(self._nodes, (ras[0], ras[1], ras[2]), self._level)
        self._show(values)

    def _show(self, values: VoxelProbe) -> None:
        organ = ", ".join(values.organs) or _("no organ")
        hu = "" if values.hu is None else _("{organ}, {hu:.0f} HU").format(organ=organ, hu=values.hu)
        self._ui.cursorOrganLabel.text = hu or _NOTHING
        attention = (f"{SHORT_EXPERT_TITLES[expert].lower()} {value:.2f}" for expert, value in values.attention.items())
        self._ui.cursorAttentionLabel.text = " · ".join(attention) or _NOTHING
        self._ui.cursorUncertaintyLabel.text = _number(values.uncertainty)
        self._ui.cursorDisagreementLabel.text = _number(values.disagreement)


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


class ExpertsPanel(VTKObservationMixin):
    """The widgets of the Experts section.

    ``layout`` is the Qt layout that the panel is added to. The choices are kept in the parameter node: ``expertMap`` (a
    name from ``scene.expert_views``), ``expertLevel`` (1 to 4), ``mapOpacity`` and ``mapThreshold`` (0 to 1),
    ``colorMap`` (a key of ``rendering.layout.COLOR_MAPS``), and ``showLegend``. The sliders and check boxes are bound
    to it by their ``SlicerParameterName``. The available maps and levels depend on the result, so the selectors are
    filled here.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path) -> None:
        VTKObservationMixin.__init__(self)
        self._nodes: CaseNodes | None = None
        self._parameters: DCASegmentationParameterNode | None = None
        self._parametersObserver = ModifiedObserver(self._onModified)
        self._rows: list[SegmentAttention] = []
        self._measured: int | None = None
        self._isOpen = False
        self._sizes: list[tuple[int, int]] = []
        self._layouts = ViewLayouts()
        self._steps, self._loading = StepRunner(), StepRunner()
        self._placing = createTimer(self._placeComparison)
        self._watch = SegmentationObserver(self._onSegmentationChanged)
        self.widget = slicer.util.loadUI(str(uiFolder / "Experts.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self._table = AttentionTable(self.ui.attentionTable)
        self._readOut = CursorReadOut(self.ui)
        for name in COLOR_MAPS:
            self.ui.colorMapSelector.addItem(name, name)
        self.ui.mapSelector.connect("activated(int)", self._onMapActivated)
        self.ui.levelSelector.connect("activated(int)", self._onLevelActivated)
        self.ui.colorMapSelector.connect("activated(int)", self._onColorMapActivated)
        self.ui.compareButton.connect("clicked(bool)", self._onCompare)
        self.ui.plotButton.connect("clicked(bool)", self._onPlot)
        self.ui.saveMapsCheckBox.connect("toggled(bool)", self._onSaveMaps)
        register_comparison()
        self._updateWidgets()

    def setOpen(self, isOpen: bool) -> None:
        """Set whether the section is visible. Maps for the table and the read-out are loaded only while it is."""
        self._isOpen = isOpen
        self.update()

    def setParameterNode(self, parameterNode: DCASegmentationParameterNode | None) -> None:
        """Keep the choices in this parameter node; None if there is none."""
        self._parameters = parameterNode
        self._parametersObserver.observe(parameterNode)
        self.update()

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Show the experts of this result; None if there is none."""
        if nodes == self._nodes:
            return
        before = self._nodes
        self._steps.stop()
        self._loading.stop()
        self._nodes, self._measured, self._rows = nodes, None, []
        self._readOut.setCase(nodes, self.level)
        if before is not None:
            expert_views.remove_maps_from_views(before)
        self._watch.watch(nodes.segmentation if nodes is not None else None)
        if nodes is not None and self.isComparing:
            self._layouts.show_comparison(nodes)
        if nodes is not None and self._savesMaps:
            self._loading.run(self._loadMapsInSteps(nodes), self.update)
        self.update()

    def enter(self) -> None:
        """The user opens the module: follow the mouse and the view layout."""
        self.exit()
        self._readOut.start()
        if (node := self._layouts.get_layout_node()) is not None:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onModified)
        self.update()

    def exit(self) -> None:
        """The user leaves the module: stop following the mouse and the view layout."""
        self._readOut.stop()
        if (node := self._layouts.get_layout_node()) is not None and self.hasObserver(
            node, vtk.vtkCommand.ModifiedEvent, self._onModified
        ):
            self.removeObserver(node, vtk.vtkCommand.ModifiedEvent, self._onModified)

    def cleanup(self) -> None:
        """Stop all work and disconnect from the scene."""
        self._readOut.stop()
        self._watch.watch(None)
        self._steps.stop()
        self._loading.stop()
        self._placing.stop()
        self._parametersObserver.observe(None)
        self.removeObservers()

    @property
    def level(self) -> int:
        """The selected attention level, or the finest one of the result if it lacks that level; 0 without attention."""
        wanted = self._parameters.expertLevel if self._parameters is not None else 0
        levels = list_attention_levels(self._nodes) if self._nodes is not None else []
        return wanted if wanted in levels else max(levels, default=0)

    @property
    def choice(self) -> str:
        """The selected map, or "none" if the result lacks it."""
        wanted = self._parameters.expertMap if self._parameters is not None else expert_views.NONE
        isAvailable = self._nodes is not None and wanted in expert_views.list_choices(self._nodes, self.level)
        return wanted if isAvailable else expert_views.NONE

    @property
    def isComparing(self) -> bool:
        """Whether the experts are shown side by side."""
        return self._nodes is not None and self._layouts.get_current_layout() == COMPARISON

    def update(self) -> None:
        """Update the views, the table, and the widgets from the result and the choices."""
        if self._nodes is not None and self._parameters is not None:
            self._updateViews(self._nodes, self._parameters)
            self._updateAttention(self._nodes)
        self._updateWidgets()

    def _updateViews(self, nodes: CaseNodes, parameters: DCASegmentationParameterNode, maySwitch: bool = False) -> None:
        """Show the chosen map in the views of its CT; ``maySwitch``: in all views if none shows this CT."""
        style = MapStyle(parameters.mapOpacity, parameters.mapThreshold, parameters.colorMap, parameters.showLegend)
        node = expert_views.get_map_node(nodes, self.level, self.choice)
        expert_views.show_map_over_ct(nodes, node, style, maySwitch)
        if self.isComparing:
            expert_views.show_side_by_side(get_comparison_composites(), nodes, self.level, style)
        if self._savesMaps:
            self._keepSaved(nodes, True)

    def _updateAttention(self, nodes: CaseNodes) -> None:
        """Measure only if the level or the segments changed, because sliders call for an update at every step."""
        if self._measured == self.level or not self._isOpen or self._steps.isRunning:
            return
        self._steps.run(self._measureInSteps(nodes, self.level), self.update)

    def _measureInSteps(self, nodes: CaseNodes, level: int) -> Iterator[None]:
        """Load the maps that the table and the read-out need, one per step, then measure."""
        names = [get_attention_name(level, expert) for _number, expert, _color in EXPERTS]
        for name in (*names, "entropy", "disagreement"):
            load_map_volume(nodes, name)
            yield
        self._measured = level
        self._readOut.setCase(nodes, level)
        self._rows = compute_segment_attention(nodes, level)
        self._table.fill(self._rows)
        if self._layouts.get_current_layout() == BAR_PLOT:
            update_chart(nodes, level, self._rows)
        self._updateWidgets()

    def _updateWidgets(self) -> None:
        hasMaps = self._nodes is not None and bool(list_available_maps(self._nodes))
        isUsable = hasMaps and self._parameters is not None
        hasAttention = isUsable and self.level > 0
        self.ui.expertsHintLabel.visible = not hasMaps or self.level == 0
        # Not every model has experts.
        self.ui.expertsIntroLabel.visible = self._nodes is None or self.level > 0
        if self._nodes is None:
            hint = _("Segment a CT to see what each expert contributed.")
        else:
            hint = _("This result has no attention maps.") if hasMaps else _("This result has no maps.")
        self.ui.expertsHintLabel.text = hint
        self._fillSelectors()
        isScale = self.choice not in (expert_views.NONE, expert_views.DOMINANT)
        self.ui.mapSelector.enabled = isUsable
        self.ui.levelSelector.enabled = hasAttention
        self.ui.mapOpacitySlider.enabled = isUsable and (self.isComparing or self.choice != expert_views.NONE)
        self.ui.legendCheckBox.enabled = self.ui.mapOpacitySlider.enabled
        self.ui.mapThresholdSlider.enabled = self.ui.colorMapSelector.enabled = isUsable and (
            self.isComparing or isScale
        )
        self.ui.compareButton.enabled = hasAttention
        self.ui.plotButton.enabled = hasAttention and bool(self._rows)
        self.ui.saveMapsCheckBox.enabled = hasMaps
        self.ui.compareButton.checked = self.isComparing
        self.ui.plotButton.checked = hasAttention and self._layouts.get_current_layout() == BAR_PLOT
        for widget in (self.ui.cursorGroup, self.ui.attentionTable, self.ui.attentionTableLabel):
            widget.visible = hasAttention

    def _fillSelectors(self) -> None:
        maps = expert_views.list_choices(self._nodes, self.level) if self._nodes is not None else [expert_views.NONE]
        titles = _mapTitles()
        _fill(self.ui.mapSelector, [(titles[name], name) for name in maps], self.choice)
        levels = sorted(list_attention_levels(self._nodes), reverse=True) if self._nodes is not None else []
        _fill(self.ui.levelSelector, [(_formatLevel(level), level) for level in levels], self.level)
        if self._parameters is not None:
            self.ui.colorMapSelector.currentIndex = self.ui.colorMapSelector.findData(self._parameters.colorMap)

    def _onModified(self, caller: Any, event: str) -> None:
        self.update()

    def _onSegmentationChanged(self) -> None:
        self._steps.stop()
        self._measured = None
        self.update()

    def _onMapActivated(self, index: int) -> None:
        if self._parameters is None:
            return
        before, chosen = self._parameters.expertMap, self.ui.mapSelector.itemData(index)
        threshold = expert_views.get_initial_threshold(chosen)
        if threshold != expert_views.get_initial_threshold(before):
            # Uncertainty and attention need different thresholds.
            self._parameters.mapThreshold = threshold
        self._parameters.expertMap = chosen
        if self._nodes is not None:
            self._updateViews(self._nodes, self._parameters, maySwitch=True)

    def _onLevelActivated(self, index: int) -> None:
        if self._parameters is not None:
            self._parameters.expertLevel = self.ui.levelSelector.itemData(index)

    def _onColorMapActivated(self, index: int) -> None:
        if self._parameters is not None:
            self._parameters.colorMap = self.ui.colorMapSelector.itemData(index)

    def _onCompare(self, checked: bool) -> None:
        if checked and self._nodes is not None:
            self._layouts.show_comparison(self._nodes)
            self._sizes = []
            self._placing.start()
        else:
            self._layouts.restore()
        self.update()

    def _placeComparison(self) -> None:
        """Fit the CT into the new views once their size is final.

        Slicer sets the size of new views in later turns of the event loop and resets their position when it does.
        """
        if not self.isComparing:
            return
        before, self._sizes = self._sizes, get_comparison_sizes()
        place_comparison()
        if self._sizes != before:
            self._placing.start()
        elif self._nodes is not None and self._parameters is not None:
            expert_views.refresh_legends(self._nodes, self.level, self._parameters.showLegend)

    def _onSaveMaps(self, checked: bool) -> None:
        """Load all maps, one per step, so that they are saved with the scene; if unchecked, leave them out."""
        nodes = self._nodes
        if nodes is None:
            return
        if checked:
            self._loading.run(self._loadMapsInSteps(nodes), self.update)
        else:
            self._loading.stop()
        self._keepSaved(nodes, checked)

    @property
    def _savesMaps(self) -> bool:
        return self._parameters is not None and self._parameters.saveMaps

    def _keepSaved(self, nodes: CaseNodes, isSaved: bool) -> None:
        """Set whether the loaded maps are saved with the scene, and with them the colors that they use now."""
        save_colors(isSaved)
        for node in nodes.maps():
            node.SetSaveWithScene(isSaved)

    def _loadMapsInSteps(self, nodes: CaseNodes) -> Iterator[None]:
        for name in sorted(list_available_maps(nodes)):
            load_map_volume(nodes, name)
            self._keepSaved(nodes, True)
            yield

    def _onPlot(self, checked: bool) -> None:
        if checked and self._nodes is not None:
            self._layouts.show_bar_plot(update_chart(self._nodes, self.level, self._rows))
        else:
            self._layouts.restore()
        self.update()


def _mapTitles() -> dict[str, str]:
    return {
        expert_views.NONE: _("None"),
        expert_views.DOMINANT: _("Dominant expert"),
        "head": _("Attention: large organs (head)"),
        "medium": _("Attention: medium organs"),
        "tail": _("Attention: small organs (tail)"),
        expert_views.UNCERTAINTY: _("Uncertainty"),
        expert_views.DISAGREEMENT: _("Disagreement"),
    }


def _formatLevel(level: int) -> str:
    titles = {4: _("4 (finest, determines the result)"), 1: _("1 (coarsest)")}
    return titles.get(level, str(level))


def _fill(selector: qt.QComboBox, items: list[tuple[str, Any]], chosen: Any) -> None:
    """Replace the items only if they differ, because that closes an open list under the user's mouse."""
    if [selector.itemData(index) for index in range(selector.count)] != [data for _title, data in items]:
        selector.clear()
        for title, data in items:
            selector.addItem(title, data)
    selector.currentIndex = selector.findData(chosen)
