"""Stand-in for ``slicer.ScriptedLoadableModule``: the base classes of a scripted module."""

from __future__ import annotations

import logging
import pathlib
import sys
import unittest
from typing import Any

import slicer
from PySide6 import QtWidgets

from fake_slicer import manifest

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


def _folder_of(cls: type) -> pathlib.Path:
    return pathlib.Path(str(sys.modules[cls.__module__].__file__)).parent


class ScriptedLoadableModule:
    """Describes the module on ``parent``, the C++ side."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies = "", [], []
        parent.contributors, parent.helpText, parent.acknowledgementText = [], "", ""

    def resourcePath(self, filename: str) -> str:
        return str(_folder_of(type(self)) / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self) -> str:
        return ""

    def runTest(self, msec: int = 100, **keywords: Any) -> None:
        test = getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**keywords)


class ScriptedLoadableModuleWidget:
    """Builds the panel in ``parent``, or in a new top-level widget without one."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        if parent is None:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(QtWidgets.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        else:
            self.parent = parent
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()

    def resourcePath(self, filename: str) -> str:
        return str(_folder_of(type(self)) / "Resources" / filename)

    def setup(self) -> None:
        """In developer mode, Slicer adds its Reload section here; the fake Slicer is not in developer mode."""

    def cleanup(self) -> None:
        """Called when the application closes and the module's widget is destroyed."""

    def onReload(self) -> None:
        """The Reload button, with Slicer's own function in ``slicer.util``."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def setupDeveloperSection(self) -> None:
        """Does nothing: there is no Reload section."""


class ScriptedLoadableModuleLogic:
    """Owns the module's parameter node in the scene."""

    def __init__(self, parent: Any = None) -> None:
        self.mrmlScene = slicer.mrmlScene
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        else:
            found = self.getAllParameterNodes()
            node = found[0] if found else None
        return node or self.createParameterNode()

    def getAllParameterNodes(self) -> list[Any]:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's self-test; Slicer calls ``runTest``."""

    def __init__(self, methodName: str = "runTest", *arguments: Any, **keywords: Any) -> None:
        super().__init__(methodName, *arguments, **keywords)
        self.messageDelay = 0

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        logging.info(message)

    def runTest(self) -> None:
        """Subclasses call their tests here."""


class qSlicerScriptedLoadableModule:
    """The C++ side of a scripted module: ``parent`` of the module class, ``slicer.modules.<name>``."""

    def __init__(self, name: str, path: pathlib.Path) -> None:
        self._widget: Any = None
        self.name, self.path = name, str(path)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not manifest.has_property("qSlicerScriptedLoadableModule", name):
            raise AttributeError(f"'{name}' does not exist on qSlicerScriptedLoadableModule")
        object.__setattr__(self, name, value)

    def widgetRepresentation(self) -> Any:
        return self._widget
