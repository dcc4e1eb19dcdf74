"""Stand-ins for the views, with Slicer's own layout logic and slice logics; they draw nothing.

As in Slicer, the slice views of a new layout get their final size in the next turn of the event loop, which also resets
their offset and field of view.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from DCASegmentationLib.scene.headless import get_application_logic
from fake_slicer.base import Plain, Signal, StandIn
from fake_slicer.mrml_widgets import qMRMLWidget


class qMRMLAbstractViewWidget(qMRMLWidget):
    """A view; the stand-in draws nothing."""

    viewLabel = Plain("")


# The size of a slice view in pixels before and after its layout is done.
_FIRST_SIZE, _FINAL_SIZE = (250, 250), (420, 640)


class qMRMLSliceView(StandIn, QtWidgets.QWidget):
    """The drawing area of a slice view, with a real interactor whose events tests invoke; it draws nothing."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._state.node, self._state.interactor = node, vtk.vtkGenericRenderWindowInteractor()

    def mrmlSliceNode(self) -> Any:
        return self._state.node

    def interactor(self) -> Any:
        return self._state.interactor

    def convertDeviceToXYZ(self, xy: Any) -> tuple[float, ...]:
        """Device coordinates are those of the slice, as there is only one slice in the view (no light box)."""
        x, y = (int(each) for each in xy)
        return float(x), float(y), 0.0

    def convertXYZToRAS(self, xyz: Any) -> tuple[float, ...]:
        return self._state.node.GetXYToRAS().MultiplyPoint([*xyz, 1.0])[:3]

    def convertRASToXYZ(self, ras: Any) -> tuple[float, ...]:
        to_xyz = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._state.node.GetXYToRAS(), to_xyz)
        return to_xyz.MultiplyPoint([*ras, 1.0])[:3]

    def setViewCursor(self, cursor: Any) -> None:
        self.setCursor(cursor)

    def unsetViewCursor(self) -> None:
        self.unsetCursor()


class qMRMLSliceWidget(qMRMLAbstractViewWidget):
    """One slice view."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._state.logic = logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(get_application_logic())
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.SetSliceNode(node)
        get_application_logic().GetSliceLogics().AddItem(logic)
        self._state.view = qMRMLSliceView(node)

    def sliceLogic(self) -> Any:
        return self._state.logic

    def mrmlSliceNode(self) -> Any:
        return self._state.logic.GetSliceNode()

    def sliceView(self) -> Any:
        return self._state.view

    @property
    def sliceViewLabel(self) -> str:
        """The letter in the view's bar."""
        return self.mrmlSliceNode().GetLayoutLabel() or ""

    @property
    def sliceViewColor(self) -> Any:
        """The color of the view's bar."""
        return QtGui.QColor.fromRgbF(*self.mrmlSliceNode().GetLayoutColor())

    def mrmlSliceCompositeNode(self) -> Any:
        return self._state.logic.GetSliceCompositeNode()

    def fitSliceToBackground(self) -> None:
        self._state.logic.FitSliceToBackground()


class qMRMLThreeDView(StandIn, QtWidgets.QWidget):
    """The drawing area of a 3D view; records the methods called on it."""

    def __init__(self) -> None:
        super().__init__()
        self._state.calls = []

    def resetFocalPoint(self) -> None:
        self._state.calls.append("resetFocalPoint")

    def resetCamera(self, *arguments: bool) -> None:
        self._state.calls.append("resetCamera")

    def rotateToViewAxis(self, axis: int) -> None:
        self._state.calls.append("rotateToViewAxis")


class qMRMLThreeDWidget(qMRMLAbstractViewWidget):
    """A 3D view with its bar."""

    def __init__(self) -> None:
        super().__init__()
        self._state.view = qMRMLThreeDView()

    def threeDView(self) -> Any:
        return self._state.view


class qMRMLPlotWidget(qMRMLAbstractViewWidget):
    """A plot view; stores its view node."""

    def mrmlPlotViewNode(self) -> Any:
        return getattr(self._state, "node", None)

    def setMRMLPlotViewNode(self, node: Any) -> None:
        self._state.node = node


class qSlicerLayoutManager(StandIn, QtCore.QObject):
    """Stand-in for ``slicer.app.layoutManager()``: creates and removes view nodes as the layout requires."""

    layoutChanged = Signal("layoutChanged(int)")

    def __init__(self) -> None:
        super().__init__()
        state = self._state
        state.logic = slicer.vtkMRMLLayoutLogic()
        state.logic.SetMRMLApplicationLogic(get_application_logic())
        state.logic.SetMRMLScene(slicer.mrmlScene)
        state.slices, state.plots, state.three_d, state.shown_before = {}, {}, qMRMLThreeDWidget(), ()
        state.logic.AddObserver("ModifiedEvent", lambda *event: self._make_slice_widgets())
        state.layout_turn = QtCore.QTimer()
        state.layout_turn.singleShot = True
        state.layout_turn.setInterval(0)
        state.layout_turn.timeout.connect(self._finish_layout)

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
        """As in Slicer, each slice view of the layout has a widget and a logic from the start."""
        slices = self._state.slices
        for node in self._shown("vtkMRMLSliceNode"):
            if node.GetID() not in slices or slices[node.GetID()].mrmlSliceNode() is not node:
                slices[node.GetID()] = qMRMLSliceWidget(node)
        if self.sliceViewNames() != self._state.shown_before:
            self._state.shown_before = self.sliceViewNames()
            for node in self._shown("vtkMRMLSliceNode"):
                node.SetDimensions(*_FIRST_SIZE, 1)
            self._state.layout_turn.start()
            self.layoutChanged.emit(self.layout)

    def _finish_layout(self) -> None:
        for node in self._shown("vtkMRMLSliceNode"):
            if tuple(node.GetDimensions()[:2]) == _FIRST_SIZE:
                node.SetDimensions(*_FINAL_SIZE, 1)
                self._state.slices[node.GetID()].fitSliceToBackground()
                self._state.slices[node.GetID()].sliceLogic().SetSliceOffset(0.0)

    @property
    def threeDViewCount(self) -> int:
        return 1 if self._shown("vtkMRMLViewNode") else 0

    def threeDWidget(self, index: int) -> Any:
        return self._state.three_d

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
