"""Stand-in for ``slicer.parameterNodeWrapper``: typed attributes stored in a vtkMRMLScriptedModuleNode.

As in Slicer, a value is stored as text under the parameter's name, an Enum as its member's name, and a node as a node
reference. Parameters that the node lacks are set to their defaults when the wrapper is created.
"""

from __future__ import annotations

import enum
import json
import pathlib
import typing
from dataclasses import dataclass
from typing import Any

import slicer
import vtk

from fake_slicer.parameter_connectors import connector_for
from fake_slicer.parameter_kinds import Choice, Decimals, Default, Exclude, Maximum, Minimum, SingleStep, WithinRange

__all__ = [
    "Choice", "Decimals", "Default", "Exclude", "Maximum", "Minimum", "SingleStep", "WithinRange",
    "isParameterNodeWrapper", "parameterNodeWrapper",
]  # fmt: skip

_RESERVED = (
    "allParameters", "default", "isCached", "dataType", "getValue", "setValue", "connectGui", "connectParametersToGui",
    "disconnectGui", "StartModify", "EndModify", "AddObserver", "RemoveObserver", "Modified",
)  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One attribute of a wrapper: its name, its type, its annotations, and its default."""

    name: str
    data_type: Any
    notes: tuple[Any, ...]
    default: Any

    def check(self, value: Any) -> None:
        for note in self.notes:
            if hasattr(note, "check"):
                note.check(value)

    def is_node(self) -> bool:
        return isinstance(self.data_type, type) and issubclass(self.data_type, slicer.vtkMRMLNode)

    def is_in(self, node: Any) -> bool:
        if self.is_node():
            return node.GetNodeReferenceID(self.name) is not None
        return bool(node.HasParameter(self.name))

    def write(self, node: Any, value: Any) -> None:
        self.check(value)
        if self.is_node():
            if value is not None and not isinstance(value, self.data_type):
                raise TypeError(f"{self.name} must be a {self.data_type.__name__}, not a {type(value).__name__}")
            node.SetNodeReferenceID(self.name, None if value is None else value.GetID())
        elif isinstance(self.data_type, type) and issubclass(self.data_type, enum.Enum):
            if not isinstance(value, self.data_type):
                raise TypeError(f"{self.name} must be a {self.data_type.__name__}, not {value!r}")
            node.SetParameter(self.name, value.name)
        elif self.data_type in (list, tuple, dict) or typing.get_origin(self.data_type) in (list, tuple, dict):
            node.SetParameter(self.name, json.dumps(value))
        elif self.data_type in (str, pathlib.Path):
            node.SetParameter(self.name, str(value))
        elif isinstance(value, bool if self.data_type is bool else (int, float)):
            node.SetParameter(self.name, str(self.data_type(value)))
        else:
            raise TypeError(f"{self.name} must be a {self.data_type.__name__}, not {value!r}")

    def read(self, node: Any) -> Any:
        if self.is_node():
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if isinstance(self.data_type, type) and issubclass(self.data_type, enum.Enum):
            return self.data_type[text]
        if self.data_type is bool:
            return text == "True"
        if self.data_type in (str, int, float, pathlib.Path):
            return self.data_type(text)
        origin = typing.get_origin(self.data_type) or self.data_type
        return origin(json.loads(text))


def parameterNodeWrapper(cls: type | None = None) -> Any:
    """Class decorator: annotated names become parameters of the node passed to the constructor."""
    if cls is None:
        return parameterNodeWrapper
    parameters = {
        name: _parameter(cls, name, hint) for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    }
    taken = [name for name in _RESERVED if name in parameters or hasattr(cls, name)]
    if taken:
        raise ValueError(f"Cannot use reserved name '{taken[0]}' in a parameterNodeWrapper")
    names = {name: _attribute(parameter) for name, parameter in parameters.items()}
    return type(cls.__name__, (_Wrapper, cls), {"allParameters": parameters, "__module__": cls.__module__, **names})


def isParameterNodeWrapper(value: Any) -> bool:
    return isinstance(value, _Wrapper) or (isinstance(value, type) and issubclass(value, _Wrapper))


def _parameter(cls: type, name: str, hint: Any) -> Parameter:
    kind, notes = hint, ()
    if typing.get_origin(hint) is typing.Annotated:
        kind, *annotations = typing.get_args(hint)
        notes = tuple(annotations)
    explicit = [note.value for note in notes if isinstance(note, Default)]
    notes = tuple(note for note in notes if not isinstance(note, Default))
    if hasattr(cls, name):
        default = getattr(cls, name)
    elif explicit:
        default = explicit[0]
    else:
        default = _default_of(kind, notes)
    return Parameter(name, kind, notes, default)


def _default_of(kind: Any, notes: tuple[Any, ...]) -> Any:
    for note in notes:
        if hasattr(note, "nearest"):
            return note.nearest()
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return None
    if kind is pathlib.Path:
        return pathlib.Path()
    return (typing.get_origin(kind) or kind)()


def _attribute(parameter: Parameter) -> property:
    return property(
        lambda self: parameter.read(self.parameterNode),
        lambda self, value: parameter.write(self.parameterNode, value),
    )


class _Wrapper:
    allParameters: typing.ClassVar[dict[str, Parameter]] = {}

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._connections: dict[int, dict[str, Any]] = {}
        self._observations: dict[int, int] = {}
        self._is_writing_widgets = False
        for parameter in self.allParameters.values():
            if not parameter.is_in(parameterNode):
                parameter.write(parameterNode, parameter.default)

    def default(self, name: str) -> Default:
        return Default(self._find(name).default)

    def dataType(self, name: str) -> Any:
        parameter = self._find(name)
        return typing.Annotated[(parameter.data_type, *parameter.notes)] if parameter.notes else parameter.data_type

    def getValue(self, name: str) -> Any:
        return self._find(name).read(self.parameterNode)

    def setValue(self, name: str, value: Any) -> None:
        self._find(name).write(self.parameterNode, value)

    def isCached(self, name: str) -> bool:
        return not self._find(name).is_node()

    def _find(self, name: str) -> Parameter:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
        return self.allParameters[name]

    def connectGui(self, gui: Any) -> int:
        """Connect each widget by its dynamic property ``SlicerParameterName``; returns a tag."""
        import qt

        widgets = gui.findChildren(qt.QWidget) if isinstance(gui, qt.QWidget) else list(vars(gui).values())
        named = {widget.property("SlicerParameterName"): widget for widget in widgets if isinstance(widget, qt.QObject)}
        return self.connectParametersToGui({name: widget for name, widget in named.items() if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        connectors = {name: connector_for(widget, self._find(name)) for name, widget in mapping.items()}
        tag = max(self._connections, default=-1) + 1
        self._connections[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.connect(lambda name=name, connector=connector: self._take(name, connector))
        self._observations[tag] = self.AddObserver(
            vtk.vtkCommand.ModifiedEvent, lambda *event: self._write_widgets(tag)
        )
        return tag

    def disconnectGui(self, tag: int) -> None:
        for connector in self._connections.pop(tag, {}).values():
            connector.disconnect()
        # The node outlives this wrapper: a remaining callback would be called after Python has deleted it.
        if tag in self._observations:
            self.RemoveObserver(self._observations.pop(tag))

    def _take(self, name: str, connector: Any) -> None:
        if not self._is_writing_widgets:
            self.setValue(name, connector.read())

    def _write_widgets(self, tag: int) -> None:
        if self._is_writing_widgets or tag not in self._connections:
            return
        self._is_writing_widgets = True
        try:
            for name, connector in self._connections[tag].items():
                connector.write(self.getValue(name))
        finally:
            self._is_writing_widgets = False

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, was_modified: int) -> int:
        return self.parameterNode.EndModify(was_modified)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()
