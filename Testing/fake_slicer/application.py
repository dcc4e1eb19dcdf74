"""Stand-in for ``slicer.app``: the members that scripts use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from DCASegmentationLib.scene.headless import get_application_logic
from fake_slicer.pythonqt import FakeSlicerError, is_in_slot
from fake_slicer.view_widgets import qSlicerLayoutManager


class qSlicerApplication:
    """The application object; ``folder`` contains its settings and temporary files."""

    applicationName = "Slicer"
    majorVersion, minorVersion = 5, 12
    isInstalled = True
    os = "linux"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._qt = QtWidgets.QApplication.instance()
        self._settings = QtCore.QSettings(str(folder / "Slicer.ini"), QtCore.QSettings.Format.IniFormat)
        self._layout_manager = qSlicerLayoutManager()
        self._at_startup: list[Callable[..., Any]] = []
        self._is_testing = False
        self.temporaryPath = str(folder / "temporary")
        self.slicerHome = str(folder / "home")
        self.defaultScenePath = str(folder / "scenes")
        Path(self.temporaryPath).mkdir()

    def applicationLogic(self) -> Any:
        return get_application_logic()

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def moduleManager(self) -> Any:
        return SimpleNamespace(module=lambda name: getattr(slicer.modules, name.lower(), None))

    def layoutManager(self) -> Any:
        return self._layout_manager

    def settings(self) -> Any:
        return self._settings

    userSettings = revisionUserSettings = settings

    def processEvents(self, flags: Any = QtCore.QEventLoop.ProcessEventsFlag.AllEvents) -> None:
        # Slicer's own WaitCursor does it.
        is_slicers = sys._getframe(1).f_globals["__name__"] == "slicer.util"
        takes_clicks = not flags & QtCore.QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents
        if is_in_slot() and takes_clicks and not is_slicers:
            raise FakeSlicerError("processEvents() within a slot lets a second click start the slot within itself")
        self._qt.processEvents(flags)

    def testingEnabled(self) -> bool:
        return self._is_testing

    def connect(self, signal: str, receiver: Callable[..., Any]) -> bool:
        if signal == "startupCompleted()":
            self._at_startup.append(receiver)
            return True
        return bool(self._qt.connect(signal, receiver))

    def disconnect(self, signal: str, receiver: Callable[..., Any]) -> bool:
        if receiver in self._at_startup:
            self._at_startup.remove(receiver)
            return True
        return bool(self._qt.disconnect(signal, receiver))

    def topLevelWidgets(self) -> list[Any]:
        return self._qt.topLevelWidgets()

    def setOverrideCursor(self, cursor: Any) -> None:
        self._qt.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        self._qt.restoreOverrideCursor()

    def pauseRender(self) -> None:
        """Does nothing, because nothing is drawn."""

    resumeRender = pauseRender

    def startupEnvironment(self) -> dict[str, str]:
        return dict(os.environ)

    def clipboard(self) -> Any:
        return self._qt.clipboard()

    def palette(self) -> Any:
        return self._qt.palette()
