"""Loads .ui files with stand-ins instead of Slicer's widgets, and rejects what the real classes do not have."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from functools import cache
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from fake_slicer import manifest
from fake_slicer.pythonqt import FakeSlicerError, _write_property


class UiLoader(QtUiTools.QUiLoader):
    """Stand-in for ``qt.QUiLoader``: creates custom widgets from ``stand_ins`` (class name -> class)."""

    def __init__(self, stand_ins: Mapping[str, type], parent: Any = None) -> None:
        super().__init__(parent)
        self._stand_ins = stand_ins

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        if class_name in self._stand_ins:
            widget = self._stand_ins[class_name](parent)
            widget.setObjectName(name)
            return widget
        if class_name not in self.availableWidgets():
            raise FakeSlicerError(f"{name}: the fake Slicer has no stand-in for {class_name}")
        return super().createWidget(class_name, parent, name)

    def load(self, file: Any, parent: Any = None) -> Any:
        tree, connections, content = _checked(bytes(file.readAll().data()))
        buffer = QtCore.QBuffer()
        buffer.setData(content)
        buffer.open(QtCore.QBuffer.OpenModeFlag.ReadOnly)
        top = super().load(buffer, parent)
        if top is None:
            raise FakeSlicerError(f"Qt cannot load the .ui: {self.errorString()}")
        _set_properties(tree, top)
        for sender, signal, receiver, slot in connections:
            _find(top, sender).connect(signal, _find(top, receiver), slot)
        return top


@cache
def _checked(content: bytes) -> tuple[ElementTree.Element, list[tuple[str, ...]], bytes]:
    """The tree of a .ui file, its connections, and the file without them."""
    tree = ElementTree.fromstring(content)
    check_ui(tree)
    # Qt would look up the signals in the stand-ins' meta objects, which do not know VTK's types.
    element = tree.find("connections")
    if element is not None:
        tree.remove(element)
    return tree, _connections(element), ElementTree.tostring(tree)


def widget_classes(tree: ElementTree.Element) -> dict[str, str]:
    """The class of each widget in a .ui file, by object name."""
    return {str(widget.get("name")): str(widget.get("class")) for widget in tree.iter("widget")}


def check_ui(tree: ElementTree.Element) -> None:
    """Raise :class:`FakeSlicerError` for a class, property, signal or slot that does not exist in Slicer."""
    classes = widget_classes(tree)
    for widget in tree.iter("widget"):
        class_name = str(widget.get("class"))
        for prop in widget.findall("property"):
            is_dynamic = prop.get("stdset") == "0"
            if not is_dynamic and not manifest.has_property(class_name, str(prop.get("name"))):
                raise FakeSlicerError(f"{widget.get('name')}: {class_name} has no property {prop.get('name')}")
    for sender, signal, receiver, slot in _connections(tree.find("connections")):
        for name in (sender, receiver):
            if name not in classes:
                raise FakeSlicerError(f"A connection names {name}, which is not a widget")
        if not manifest.has_signal(classes[sender], signal):
            raise FakeSlicerError(f"{sender}: {classes[sender]} has no signal {signal}")
        if not manifest.has_slot(classes[receiver], slot):
            raise FakeSlicerError(f"{receiver}: {classes[receiver]} has no slot {slot}")


def _connections(element: ElementTree.Element | None) -> list[tuple[str, ...]]:
    parts = ("sender", "signal", "receiver", "slot")
    return [tuple(str(item.findtext(part)) for part in parts) for item in ([] if element is None else element)]


def _find(top: Any, name: str) -> Any:
    return top if top.objectName == name else top.findChild(QtWidgets.QWidget, name)


def _set_properties(tree: ElementTree.Element, top: Any) -> None:
    """Pass the properties that a stand-in adds on to it; Qt has set them as dynamic properties only."""
    for element in tree.iter("widget"):
        own = manifest.members(str(element.get("class")), "properties")
        for prop in element.findall("property"):
            name = str(prop.get("name"))
            if name not in own:
                continue
            widget = _find(top, str(element.get("name")))
            value = widget.property(name)
            if prop[0].tag in ("enum", "set"):
                value = 0  # stand-ins do not know CTK's enumerations
            _write_property(widget, name, None)
            setattr(widget, name, value)
