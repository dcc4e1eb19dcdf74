"""Stand-ins for the segmentation widgets: they store their nodes but do not edit or draw."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
from PySide6 import QtCore, QtWidgets

from fake_slicer.base import Plain, Signal, StandIn
from fake_slicer.ctk_widgets import ctkMenuButton
from fake_slicer.mrml_widgets import qMRMLWidget


class qMRMLSegmentationShow3DButton(ctkMenuButton):
    """Computes and shows the closed surfaces when checked."""

    locked = Plain(False)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.node = None
        self.setCheckable(True)
        self.text = "Show 3D"
        self.toggled.connect(self._follow_check)

    def segmentationNode(self) -> Any:
        return self._state.node

    def setSegmentationNode(self, node: Any) -> None:
        self._state.node = node
        has_surfaces = node is not None and node.GetSegmentation().ContainsRepresentation("Closed surface")
        self.blockSignals(True)
        self.checked = has_surfaces
        self.blockSignals(False)

    def setLocked(self, locked: bool) -> None:
        self.locked = locked

    def _follow_check(self, checked: bool) -> None:
        if self._state.node is None:
            return
        if checked:
            self._state.node.CreateClosedSurfaceRepresentation()
        else:
            self._state.node.RemoveClosedSurfaceRepresentation()


class qSlicerSegmentEditorEffectFactory(StandIn, QtCore.QObject):
    """Announces the effects that extensions register; the stand-in has only their names."""

    effectRegistered = Signal("effectRegistered(QString)")
    _instance: ClassVar[Any] = None

    @staticmethod
    def instance() -> Any:
        cls = qSlicerSegmentEditorEffectFactory
        if cls._instance is None:
            cls._instance = cls()
            cls._instance._state.names = []
        return cls._instance


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Stores what is edited and which effect is active; edits nothing."""

    segmentationNodeChanged = Signal("segmentationNodeChanged(vtkMRMLSegmentationNode*)")
    sourceVolumeNodeChanged = Signal("sourceVolumeNodeChanged(vtkMRMLVolumeNode*)")
    currentSegmentIDChanged = Signal("currentSegmentIDChanged(QString)")
    segmentationNodeSelectorVisible = Plain(True)
    sourceVolumeNodeSelectorVisible = Plain(True)
    switchToSegmentationsButtonVisible = Plain(True)
    maskingSectionVisible = Plain(True)
    specifyGeometryButtonVisible = Plain(True)
    show3DButtonVisible = Plain(True)
    addRemoveSegmentButtonsVisible = Plain(True)
    autoShowSourceVolumeNode = Plain(True)
    undoEnabled = Plain(True)
    maximumNumberOfUndoStates = Plain(10)
    readOnly = Plain(False)
    jumpToSelectedSegmentEnabled = Plain(False)
    effectColumnCount = Plain(2)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.editor = self._state.shortcuts = self._state.logic = None
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(QtWidgets.QLabel("Slicer shows its Segment Editor here."))

    def mrmlSegmentEditorNode(self) -> Any:
        return self._state.editor

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        # Slicer's widget returns at once for the same node, so the states for undo stay.
        if node is not self._state.editor:
            self._state.editor, self._state.logic = node, None

    def segmentationNode(self) -> Any:
        return self._state.editor.GetSegmentationNode() if self._state.editor else None

    def setSegmentationNode(self, node: Any) -> None:
        if self._state.editor and node is not self.segmentationNode():
            self._state.editor.SetAndObserveSegmentationNode(node)
            if node is not None:
                # As Slicer's widget does in all views that can show the segmentation.
                for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
                    composite.SetLabelVolumeID(None)
            self.segmentationNodeChanged.emit(node)

    def sourceVolumeNode(self) -> Any:
        return self._state.editor.GetSourceVolumeNode() if self._state.editor else None

    def setSourceVolumeNode(self, node: Any) -> None:
        if self._state.editor and node is not self.sourceVolumeNode():
            self._state.editor.SetAndObserveSourceVolumeNode(node)
            self.sourceVolumeNodeChanged.emit(node)

    def currentSegmentID(self) -> str:
        return (self._state.editor.GetSelectedSegmentID() or "") if self._state.editor else ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._state.editor.SetSelectedSegmentID(segment_id)
        self.currentSegmentIDChanged.emit(segment_id)

    def activeEffect(self) -> Any:
        """The name of the active effect; Slicer returns an effect object."""
        return (self._state.editor.GetActiveEffectName() or None) if self._state.editor else None

    def setActiveEffect(self, effect: Any) -> None:
        if effect is not None:
            raise TypeError("The fake Slicer has no effects: use setActiveEffectByName, or None")
        self.setActiveEffectByName("")

    def setActiveEffectByName(self, name: str) -> None:
        if self._state.editor:
            self._state.editor.SetActiveEffectName(name)

    def updateEffectList(self) -> None:
        """Show the effects that are registered now; the stand-in has only their names."""
        self._state.effects = list(qSlicerSegmentEditorEffectFactory.instance()._state.names)

    def saveStateForUndo(self) -> None:
        """Save a copy of the segmentation with Slicer's segment editor logic."""
        if self._state.logic is None:
            self._state.logic = slicer.vtkSlicerSegmentEditorLogic()
            self._state.logic.SetMRMLScene(slicer.mrmlScene)
            self._state.logic.SetSegmentEditorNode(self._state.editor)
        self._state.logic.SaveStateForUndo()

    def undo(self) -> None:
        if self._state.logic is not None:
            self._state.logic.Undo()

    def setMaximumNumberOfUndoStates(self, count: int) -> None:
        self.maximumNumberOfUndoStates = count

    def setUndoEnabled(self, enabled: bool) -> None:
        self.undoEnabled = enabled

    def setSegmentationNodeSelectorVisible(self, visible: bool) -> None:
        self.segmentationNodeSelectorVisible = visible

    def setSourceVolumeNodeSelectorVisible(self, visible: bool) -> None:
        self.sourceVolumeNodeSelectorVisible = visible

    def setSwitchToSegmentationsButtonVisible(self, visible: bool) -> None:
        self.switchToSegmentationsButtonVisible = visible

    def setAutoShowSourceVolumeNode(self, show: bool) -> None:
        self.autoShowSourceVolumeNode = show

    def setReadOnly(self, read_only: bool) -> None:
        self.readOnly = read_only

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        self._state.shortcuts = parent or self

    def uninstallKeyboardShortcuts(self) -> None:
        self._state.shortcuts = None

    def setupViewObservations(self) -> None:
        """Does nothing, because there are no views to observe."""

    removeViewObservations = updateWidgetFromMRML = setupViewObservations
