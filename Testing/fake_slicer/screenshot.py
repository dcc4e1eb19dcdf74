"""Pictures of the panel in light and dark colors; Slicer follows the system's color scheme."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6 import QtGui, QtWidgets

_DARK = {
    "Window": "#323232", "WindowText": "#ffffff", "Base": "#232323", "AlternateBase": "#2d2d2d", "Text": "#ffffff",
    "Button": "#3c3c3c", "ButtonText": "#ffffff", "ToolTipBase": "#3c3c3c", "ToolTipText": "#ffffff",
    "Link": "#5aa9ff", "Highlight": "#2a82da", "HighlightedText": "#ffffff", "PlaceholderText": "#a0a0a0",
}  # fmt: skip
_DARK_DISABLED = ("WindowText", "Text", "ButtonText")


def screenshot(widget: Any, path: Path, style: str = "light", prepare: Callable[[], None] | None = None) -> Path:
    """Write ``widget`` as PNG, drawn with Qt's Fusion style in a ``light`` or ``dark`` palette.

    ``prepare()`` is called after these colors are set.
    """
    application = QtWidgets.QApplication.instance()
    application.setStyle("Fusion")
    before = application.palette()
    application.setPalette(_dark_palette() if style == "dark" else application.style().standardPalette())
    try:
        if prepare is not None:
            prepare()
        application.processEvents()
        widget.grab().save(str(path))
    finally:
        application.setPalette(before)
    return path


def _dark_palette() -> QtGui.QPalette:
    palette = QtGui.QPalette()
    for role, color in _DARK.items():
        palette.setColor(getattr(QtGui.QPalette.ColorRole, role), QtGui.QColor(color))
    for role in _DARK_DISABLED:
        group = QtGui.QPalette.ColorGroup.Disabled
        palette.setColor(group, getattr(QtGui.QPalette.ColorRole, role), QtGui.QColor("#808080"))
    return palette
