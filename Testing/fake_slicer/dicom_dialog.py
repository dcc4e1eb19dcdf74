"""Stand-in for Slicer's DICOM export dialog: it records which item it was opened for and exports nothing."""

from __future__ import annotations

from typing import Any, ClassVar

from PySide6 import QtCore

from fake_slicer.base import StandIn


class qSlicerDICOMExportDialog(StandIn, QtCore.QObject):
    """``_opened_for`` lists the subject hierarchy items it was opened for, or None if no scene had been set."""

    _opened_for: ClassVar[list[int | None]] = []

    def setMRMLScene(self, scene: Any) -> None:
        self._state.scene = scene

    def execDialog(self, item: int = 0) -> bool:
        self._opened_for.append(item if getattr(self._state, "scene", None) is not None else None)
        return True
