"""Two arrangements of the views besides Slicer's own: the experts side by side, and slices with the bar plot."""

from __future__ import annotations

from typing import Any

import slicer

from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.scene.arrangement import view_node
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.expert_views import COMPARISON_VIEWS
from DCASegmentationLib.scene.headless import application_logic

# Slicer's own layouts have numbers below 100; scripts take larger ones.
COMPARISON = 7301
BAR_PLOT = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView
_USUAL = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView

# The group keeps the comparison linked within itself: the usual views do not follow.
_GROUP = 73
_VIEW = (
    '<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
    '<property name="orientation" action="default">Axial</property>'
    '<property name="viewlabel" action="default">{label}</property>'
    '<property name="viewcolor" action="default">{color}</property>'
    f'<property name="viewgroup" action="default">{_GROUP}</property>'
    "</view></item>"
)


class ViewLayouts:
    """Switches between the arrangements and back to the one the user had."""

    def __init__(self) -> None:
        self._before = _USUAL

    def node(self) -> Any | None:
        """The vtkMRMLLayoutNode of the scene."""
        return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    def current(self) -> int:
        """The arrangement shown; Slicer's number of it, or ``COMPARISON``."""
        node = self.node()
        return int(node.GetViewArrangement()) if node is not None else _USUAL

    def show_comparison(self, nodes: CaseNodes) -> dict[str, Any]:
        """Show the experts side by side, linked; gives the vtkMRMLSliceCompositeNode of each expert's view.

        Slicer gives the views their size in later turns of the event loop, and resets their position then: call
        :func:`place_comparison` when :func:`comparison_sizes` have settled.
        """
        register_comparison()
        self._switch(COMPARISON)
        composites = comparison_composites()
        for composite in composites.values():
            composite.SetBackgroundVolumeID(nodes.ct.GetID() if nodes.ct is not None else None)
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)
        return composites

    def show_bar_plot(self, chart: Any) -> None:
        """Show the usual slices with Slicer's plot view beside them, and the chart in it."""
        self._switch(BAR_PLOT)
        application_logic().GetSelectionNode().SetActivePlotChartID(chart.GetID())
        application_logic().PropagatePlotChartSelection()

    def restore(self) -> None:
        """Back to the arrangement before."""
        node = self.node()
        if node is not None:
            node.SetViewArrangement(self._before)

    def _switch(self, arrangement: int) -> None:
        node = self.node()
        if node is None:
            return
        if self.current() not in (COMPARISON, BAR_PLOT):
            self._before = self.current()
        node.SetViewArrangement(arrangement)


def register_comparison() -> None:
    """Tell Slicer of the arrangement; a scene does not keep it, only its number."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    if node is not None and not node.IsLayoutDescription(COMPARISON):
        node.AddLayoutDescription(COMPARISON, _description())


def comparison_composites() -> dict[str, Any]:
    """The vtkMRMLSliceCompositeNode of each expert's view."""
    return {expert: view_node("vtkMRMLSliceCompositeNode", tag) for expert, tag in COMPARISON_VIEWS.items()}


def _description() -> str:
    views = (
        _VIEW.format(tag=COMPARISON_VIEWS[name], label=name.capitalize(), color="#{:02x}{:02x}{:02x}".format(*color))
        for _, name, color in EXPERTS
    )
    return f'<layout type="horizontal" split="true">{"".join(views)}</layout>'


def comparison_sizes() -> list[tuple[int, int]]:
    """The pixels of the views of the comparison."""
    nodes = [view_node("vtkMRMLSliceNode", tag) for tag in COMPARISON_VIEWS.values()]
    return [tuple(node.GetDimensions()[:2]) for node in nodes]


def place_comparison() -> None:
    """Show the whole CT in each view of the comparison, at the slice of the usual view."""
    usual = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    for tag in COMPARISON_VIEWS.values():
        node = view_node("vtkMRMLSliceNode", tag)
        logic = application_logic().GetSliceLogic(node)
        if logic is not None:
            logic.FitSliceToBackground()
        if usual is not None:
            node.JumpSliceByOffsetting(*(usual.GetSliceToRAS().GetElement(row, 3) for row in range(3)))
