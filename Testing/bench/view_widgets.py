"""Stand-ins of the views: the layout is Slicer's own layout logic, each slice view its own slice logic; none draws."""

from __future__ import annotations

from typing import Any

import slicer
from DCASegmentationLib.scene.headless import application_logic
from PySide6 import QtCore

from bench.mrml_widgets import qMRMLWidget
from bench.stand_in import Plain, StandIn


class qMRMLAbstractViewWidget(qMRMLWidget):
    """A view; the stand-in shows nothing."""

    viewLabel = Plain("")


class qMRMLSliceWidget(qMRMLAbstractViewWidget):
    """One slice view."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._state.logic = logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(application_logic())
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.SetSliceNode(node)
        application_logic().GetSliceLogics().AddItem(logic)

    def sliceLogic(self) -> Any:
        return self._state.logic

    def mrmlSliceNode(self) -> Any:
        return self._state.logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._state.logic.GetSliceCompositeNode()

    def fitSliceToBackground(self) -> None:
        self._state.logic.FitSliceToBackground()


class qMRMLPlotWidget(qMRMLAbstractViewWidget):
    """A plot view: knows its view node, whose chart it would draw."""

    def mrmlPlotViewNode(self) -> Any:
        return getattr(self._state, "node", None)

    def setMRMLPlotViewNode(self, node: Any) -> None:
        self._state.node = node


class qSlicerLayoutManager(StandIn, QtCore.QObject):
    """``slicer.app.layoutManager()``: view nodes come and go as the layout's description says."""

    def __init__(self) -> None:
        super().__init__()
        state = self._state
        state.logic = slicer.vtkMRMLLayoutLogic()
        state.logic.SetMRMLApplicationLogic(application_logic())
        state.logic.SetMRMLScene(slicer.mrmlScene)
        state.slices, state.plots = {}, {}
        state.logic.AddObserver("ModifiedEvent", lambda *event: self._make_slice_widgets())

    def layoutLogic(self) -> Any:
        return self._state.logic

    @property
    def layout(self) -> int:
        return self._state.logic.GetLayoutNode().GetViewArrangement()

    @layout.setter
    def layout(self, layout: int) -> None:
        self.setLayout(layout)

    def setLayout(self, layout: int) -> None:
        self._state.logic.GetLayoutNode().SetViewArrangement(layout)

    def _shown(self, class_name: str) -> list[Any]:
        nodes = self._state.logic.GetViewNodes()
        found = [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
        return [node for node in found if node.IsA(class_name)]

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(node.GetLayoutName() for node in self._shown("vtkMRMLSliceNode"))

    def sliceWidget(self, name: str) -> Any:
        self._make_slice_widgets()
        shown = {node.GetLayoutName(): node for node in self._shown("vtkMRMLSliceNode")}
        return self._state.slices[shown[name].GetID()] if name in shown else None

    def _make_slice_widgets(self) -> None:
        """As in Slicer, each slice view of the layout has a widget, and with it a logic, from the first."""
        slices = self._state.slices
        for node in self._shown("vtkMRMLSliceNode"):
            if node.GetID() not in slices or slices[node.GetID()].mrmlSliceNode() is not node:
                slices[node.GetID()] = qMRMLSliceWidget(node)

    @property
    def plotViewCount(self) -> int:
        return len(self._shown("vtkMRMLPlotViewNode"))

    def plotWidget(self, index: int) -> Any:
        node = self._shown("vtkMRMLPlotViewNode")[index]
        widget = self._state.plots.setdefault(node.GetID(), qMRMLPlotWidget())
        widget.setMRMLPlotViewNode(node)
        return widget

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def resetSliceViews(self) -> None:
        for name in self.sliceViewNames():
            self.sliceWidget(name).fitSliceToBackground()
