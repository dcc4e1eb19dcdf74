"""Stand-in for the node selector. As in Slicer, it selects nothing by itself."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets
from shiboken6 import isValid

from fake_slicer.base import Plain, Signal, StandIn


def _switch(name: str) -> Any:
    """A property that controls which nodes are listed and how."""

    def write(self: Any, value: Any) -> None:
        self._state.switches[name] = type(self._state.switches[name])(value)
        self._refill()

    return property(lambda self: self._state.switches[name], write)


class qMRMLNodeComboBox(StandIn, QtWidgets.QWidget):
    """A combo box that lists the scene's nodes of certain types."""

    currentNodeChanged = Signal("currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)")
    currentNodeIDChanged = Signal("currentNodeIDChanged(QString)")
    nodeActivated = Signal("nodeActivated(vtkMRMLNode*)")
    nodeAdded = Signal("nodeAdded(vtkMRMLNode*)")
    nodeAddedByUser = Signal("nodeAddedByUser(vtkMRMLNode*)")
    addEnabled = Plain(True)
    removeEnabled = Plain(True)
    editEnabled = Plain(False)
    renameEnabled = Plain(False)
    selectNodeUponCreation = Plain(True)
    baseName = Plain("")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        state = self._state
        state.scene, state.current_id, state.ids = None, "", []
        state.types, state.attributes, state.observers = (), [], []
        state.switches = {
            "noneEnabled": False, "noneDisplay": "", "showHidden": False,
            "showChildNodeTypes": True, "hideChildNodeTypes": (),
        }  # fmt: skip
        state.box = QtWidgets.QComboBox(self)
        state.box.activated.connect(self._choose)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(state.box)
        self.destroyed.connect(lambda: _forget(state))
        self._refill()

    noneEnabled = _switch("noneEnabled")
    noneDisplay = _switch("noneDisplay")
    showHidden = _switch("showHidden")
    showChildNodeTypes = _switch("showChildNodeTypes")
    hideChildNodeTypes = _switch("hideChildNodeTypes")

    @property
    def nodeTypes(self) -> tuple[str, ...]:
        return self._state.types

    @nodeTypes.setter
    def nodeTypes(self, types: Any) -> None:
        self._state.types = tuple(types)
        self._refill()

    @property
    def currentNodeID(self) -> str:
        return self._state.current_id

    @currentNodeID.setter
    def currentNodeID(self, node_id: str) -> None:
        self._select(node_id or "")

    currentNodeId = property(lambda self: self.currentNodeID)

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        self._state.attributes.append((node_type, name, value))
        self._refill()

    def removeAttribute(self, node_type: str, name: str) -> None:
        self._state.attributes = [entry for entry in self._state.attributes if entry[:2] != (node_type, name)]
        self._refill()

    def mrmlScene(self) -> Any:
        return self._state.scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._state.scene:
            return
        _forget(self._state)
        self._state.scene = scene
        for event in ("EndCloseEvent", "EndImportEvent", "EndBatchProcessEvent"):
            if scene is not None:
                code = getattr(slicer.vtkMRMLScene, event)
                self._state.observers.append(scene.AddObserver(code, lambda *event: self._refill()))
        for event in ("NodeAddedEvent", "NodeRemovedEvent"):
            if scene is not None:
                code = getattr(slicer.vtkMRMLScene, event)
                self._state.observers.append(scene.AddObserver(code, self._follow_node))
        self._refill()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _follow_node(self, scene: Any, event: str, node: Any) -> None:
        """Refill only for nodes of the listed types, as in Slicer."""
        if any(node.IsA(name) for name in self._state.types):
            self._refill()

    def setNodeTypeLabel(self, label: str, node_type: str) -> None:
        self._state.switches.setdefault("labels", {})[node_type] = label

    def nodeCount(self) -> int:
        return len(self._state.ids)

    def nodeFromIndex(self, index: int) -> Any:
        return self._state.scene.GetNodeByID(self._state.ids[index])

    def currentNode(self) -> Any:
        scene = self._state.scene
        return scene.GetNodeByID(self._state.current_id) if scene is not None and self._state.current_id else None

    def setCurrentNode(self, node: Any) -> None:
        self._select(node if isinstance(node, str) else node.GetID() if node is not None else "")

    def setCurrentNodeID(self, node_id: str) -> None:
        self._select(node_id or "")

    def setCurrentNodeIndex(self, index: int) -> None:
        self._select(self._state.ids[index])

    def addNode(self, node_type: str | None = None) -> Any:
        node = self._state.scene.AddNewNodeByClass(node_type or self._state.types[0], self.baseName or "")
        if self.selectNodeUponCreation:
            self._select(node.GetID())
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        self._state.scene.RemoveNode(self.currentNode())

    def _shown(self) -> list[Any]:
        scene, switches = self._state.scene, self._state.switches
        if scene is None:
            return []
        nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
        return [
            node
            for node in nodes
            if any(_is_of_type(node, name, switches["showChildNodeTypes"]) for name in self._state.types)
            and not any(node.IsA(name) for name in switches["hideChildNodeTypes"])
            and (switches["showHidden"] or not node.GetHideFromEditors())
            and all(
                node.GetAttribute(name) is not None and value in (None, node.GetAttribute(name))
                for node_type, name, value in self._state.attributes
                if node.IsA(node_type)
            )
        ]

    def _refill(self) -> None:
        state = self._state
        if not isValid(state.box):
            # Qt has deleted the widget, but the Python object still exists.
            _forget(state)
            return
        if state.scene is not None and state.scene.IsBatchProcessing():
            return
        nodes = self._shown()
        state.ids = [node.GetID() for node in nodes]
        state.box.blockSignals(True)
        state.box.clear()
        if state.switches["noneEnabled"]:
            state.box.addItem(state.switches["noneDisplay"] or "None", "")
        for node in nodes:
            state.box.addItem(node.GetName(), node.GetID())
        state.box.setCurrentIndex(state.box.findData(state.current_id))
        state.box.blockSignals(False)
        if state.current_id and state.current_id not in state.ids:
            self._select("")

    def _choose(self, index: int) -> None:
        self._select(self._state.box.itemData(index))
        self.nodeActivated.emit(self.currentNode())

    def _select(self, node_id: str) -> None:
        state = self._state
        if node_id not in state.ids:
            node_id = ""
        state.box.setCurrentIndex(state.box.findData(node_id))
        if node_id == state.current_id:
            return
        state.current_id = node_id
        node = self.currentNode()
        self.currentNodeChanged.emit(node)
        self.currentNodeChanged.emit_as("currentNodeChanged(bool)", node is not None)
        self.currentNodeIDChanged.emit(node_id)


def _is_of_type(node: Any, name: str, or_child: bool) -> bool:
    return bool(node.IsA(name)) if or_child else node.GetClassName() == name


def _forget(state: Any) -> None:
    for tag in state.observers:
        state.scene.RemoveObserver(tag)
    state.observers = []
