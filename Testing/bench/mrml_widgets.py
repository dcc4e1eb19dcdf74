"""Stand-ins of the plain widgets that know the scene."""

from __future__ import annotations

from typing import Any

from PySide6 import QtWidgets

from bench.stand_in import Signal, StandIn


class qMRMLWidget(StandIn, QtWidgets.QWidget):
    """The top of a module's panel: passes the scene on."""

    mrmlSceneChanged = Signal("mrmlSceneChanged(vtkMRMLScene*)")

    def mrmlScene(self) -> Any:
        return getattr(self._state, "scene", None)

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self.mrmlScene():
            self._state.scene = scene
            self.mrmlSceneChanged.emit(scene)


class qSlicerScriptedLoadableModuleWidget(StandIn, QtWidgets.QWidget):
    """What a scripted module's panel is put into."""

    mrmlSceneChanged = Signal("mrmlSceneChanged(vtkMRMLScene*)")

    def setMRMLScene(self, scene: Any) -> None:
        self._state.scene = scene
        self.mrmlSceneChanged.emit(scene)

    def self(self) -> Any:
        """The module's Python widget."""
        return self._state.python_widget
