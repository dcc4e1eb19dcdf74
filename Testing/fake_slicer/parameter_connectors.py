"""Binds parameters to widgets, for exactly the pairs of widget class and parameter type that Slicer supports."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable
from typing import Any

from fake_slicer.parameter_kinds import Choice, Decimals, Maximum, Minimum, SingleStep, WithinRange
from fake_slicer.pythonqt import is_cpp

# Widget class -> types, attribute, signal. Subclasses in Python or C++ do not count, because Slicer compares the class.
_BY_ATTRIBUTE = {
    "QCheckBox": ((bool,), "checked", "toggled"),
    "QPushButton": ((bool,), "checked", "toggled"),
    "QSlider": ((int,), "value", "valueChanged"),
    "QSpinBox": ((int,), "value", "valueChanged"),
    "QDoubleSpinBox": ((float,), "value", "valueChanged"),
    "ctkSliderWidget": ((float,), "value", "valueChanged"),
    "QLineEdit": ((str,), "text", "textChanged"),
    "QTextEdit": ((str,), "plainText", "textChanged"),
    "ctkPathLineEdit": ((pathlib.Path,), "currentPath", "currentPathChanged"),
}


def connector_for(widget: Any, parameter: Any) -> Connector:
    """The connector for a widget and a parameter. Raises RuntimeError, as Slicer does, if there is none."""
    name = type(widget).__name__ if is_cpp(type(widget)) else ""
    if name == "qMRMLNodeComboBox" and parameter.is_node():
        widget.nodeTypes = [parameter.data_type.__name__]
        return _NodeConnector(widget)
    if name == "QComboBox":
        return _combo_connector(widget, parameter)
    kinds, attribute, signal = _BY_ATTRIBUTE.get(name, ((), "", ""))
    if parameter.data_type not in kinds:
        raise RuntimeError(
            f"Unable to create GUI connector from datatype '{parameter.data_type}' to widget type '{type(widget)}'"
        )
    if name == "QPushButton":
        widget.checkable = True
    if attribute == "value":
        _limit(widget, name, parameter.notes)
    return Connector(widget, attribute, signal, parameter.data_type)


class Connector:
    """Reads and writes one attribute of a widget, and follows one of its signals."""

    def __init__(self, widget: Any, attribute: str, signal: str, kind: Callable[[Any], Any]) -> None:
        self._widget, self._attribute, self._signal, self._kind = widget, attribute, signal, kind
        self._on_change: Callable[[], None] | None = None

    def connect(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        getattr(self._widget, self._signal).connect(self._changed)

    def disconnect(self) -> None:
        # A signal that stayed connected would keep this object alive as long as the widget.
        getattr(self._widget, self._signal).disconnect(self._changed)
        self._on_change = None

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def read(self) -> Any:
        return self._kind(getattr(self._widget, self._attribute))

    def write(self, value: Any) -> None:
        value = str(value) if isinstance(value, pathlib.Path) else value
        if getattr(self._widget, self._attribute) != value:
            setattr(self._widget, self._attribute, value)


class _NodeConnector(Connector):
    def __init__(self, widget: Any) -> None:
        super().__init__(widget, "", "currentNodeChanged", lambda node: node)

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)


class _ChoiceConnector(Connector):
    def __init__(self, widget: Any, choices: dict[str, Any]) -> None:
        widget.clear()
        for label in choices:
            widget.addItem(label)
        self._choices = choices
        super().__init__(widget, "currentIndex", "currentIndexChanged", int)

    def read(self) -> Any:
        return list(self._choices.values())[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        self._widget.currentIndex = list(self._choices.values()).index(value)


def _combo_connector(widget: Any, parameter: Any) -> Connector:
    if isinstance(parameter.data_type, type) and issubclass(parameter.data_type, enum.Enum):
        label = getattr(parameter.data_type, "label", lambda member: member.name)
        return _ChoiceConnector(widget, {label(member): member for member in parameter.data_type})
    choices = [note.choices for note in parameter.notes if isinstance(note, Choice)]
    if parameter.data_type not in (int, float, str, bool) or not choices:
        raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
    return _ChoiceConnector(widget, {str(choice): choice for choice in choices[0]})


def _limit(widget: Any, name: str, notes: tuple[Any, ...]) -> None:
    """Set a widget's range from the parameter's bounds; if there are none, a slider is rejected, as in Slicer."""
    lowest, highest = (-(2**31), 2**31 - 1) if name in ("QSlider", "QSpinBox") else (float("-inf"), float("inf"))
    bounds = [None, None]
    for note in notes:
        if isinstance(note, (WithinRange, Minimum)):
            bounds[0] = note.minimum
        if isinstance(note, (WithinRange, Maximum)):
            bounds[1] = note.maximum
        if isinstance(note, Decimals):
            widget.decimals = note.value
        if isinstance(note, SingleStep):
            widget.singleStep = note.value
    if name in ("QSlider", "ctkSliderWidget") and None in bounds:
        raise RuntimeError(f"Cannot have a connection to {name} where the type is unbounded.")
    widget.minimum = lowest if bounds[0] is None else bounds[0]
    widget.maximum = highest if bounds[1] is None else bounds[1]
