"""Stand-ins for basic widgets with a MRML scene."""

from __future__ import annotations

import sys
from typing import Any

import slicer
from PySide6 import QtWidgets

from fake_slicer.base import Signal, StandIn


class qMRMLWidget(StandIn, QtWidgets.QWidget):
    """The top-level widget of a module's panel; passes the scene on."""

    mrmlSceneChanged = Signal("mrmlSceneChanged(vtkMRMLScene*)")

    def mrmlScene(self) -> Any:
        return getattr(self._state, "scene", None)

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self.mrmlScene():
            self._state.scene = scene
            self.mrmlSceneChanged.emit(scene)


class qSlicerScriptedLoadableModuleWidget(StandIn, QtWidgets.QWidget):
    """The widget that contains a scripted module's panel."""

    mrmlSceneChanged = Signal("mrmlSceneChanged(vtkMRMLScene*)")

    def setMRMLScene(self, scene: Any) -> None:
        self._state.scene = scene
        self.mrmlSceneChanged.emit(scene)

    def reload(self) -> None:
        """Create a new panel with the module's current class; it is set up but not entered."""
        name = self._state.module_name
        widget = getattr(sys.modules[name], f"{name}Widget")(self)
        self._state.python_widget = widget
        setattr(slicer.modules, f"{name}Widget", widget)
        widget.setup()

    def self(self) -> Any:
        """The module's Python widget."""
        return self._state.python_widget
