"""Makes PySide6's classes behave like those of PythonQt, through which Python code in Slicer uses Qt.

In PythonQt, a property is an attribute and not a call (``button.text``), every object has a method ``connect`` that
takes a signature (``button.connect("clicked(bool)", f)``), and an object of a C++ class accepts no new attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

QT_MODULES = (QtWidgets, QtGui, QtCore, QtNetwork, QtUiTools)

# Virtual methods that are also properties. Qt calls them by name, so they stay methods here.
_VIRTUAL = {"sizeHint", "minimumSizeHint"}
# Modules whose classes represent Slicer's C++ classes. Subclasses elsewhere are Python classes and accept attributes.
STAND_IN_MODULES = {
    "fake_slicer.ctk_widgets",
    "fake_slicer.mrml_widgets",
    "fake_slicer.node_combo_box",
    "fake_slicer.segmentation_widgets",
    "fake_slicer.view_widgets",
}
_read_property = QtCore.QObject.property
_write_property = QtCore.QObject.setProperty
_is_patched = False
# Callables passed to QTimer.singleShot, which PythonQt never frees.
KEPT: list[Callable[[], Any]] = []


_running_slots = 0


@contextmanager
def running_slot() -> Iterator[None]:
    """Within the context, a slot that Python code has connected is running."""
    global _running_slots
    _running_slots += 1
    try:
        yield
    finally:
        _running_slots -= 1


def is_in_slot() -> bool:
    """Whether such a slot is running."""
    return _running_slots > 0


class FakeSlicerError(Exception):
    """The module uses Slicer's Qt side in a way that the real one would refuse or silently ignore."""


def patch() -> None:
    """Patch PySide6's classes, once per process."""
    global _is_patched
    if _is_patched:
        return
    _is_patched = True
    classes = list(_qobject_classes())
    # Look up all accessors before changing any class, because a property hides the method that reads it.
    accessors = [(cls, name, QtProperty(cls, name)) for cls in classes for name in _own_properties(cls)]
    for cls, name, accessor in accessors:
        setattr(cls, name, accessor)
    finders = [(cls, _finder(cls.__getattribute__)) for cls in classes if "__getattribute__" in vars(cls)]
    for cls, finder in finders:  # classes with their own __getattribute__ must keep it
        cls.__getattribute__ = finder
    for cls in classes:
        cls.__setattr__ = _set_known_attribute
    QtCore.QObject.name = vars(QtCore.QObject)["objectName"]  # PythonQt's alias
    QtCore.QObject.className = class_name
    QtCore.QObject.property = _dynamic_property
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu, QtCore.QEventLoop, QtCore.QCoreApplication):
        cls.exec_ = cls.exec
    # PySide6's own singleShot would use the patched ``connect``.
    vars(QtCore.QTimer)["singleShot"].of_class = _single_shot
    _let_processes_take_text()


def _single_shot(milliseconds: int, receiver: Callable[[], Any]) -> None:
    KEPT.append(receiver)
    timer = QtCore.QTimer(QtWidgets.QApplication.instance())
    timer.setSingleShot(True)
    timer.timeout.connect(receiver)
    timer.timeout.connect(timer.deleteLater)
    timer.start(milliseconds)


def _finder(find: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    def find_attribute(self: Any, name: str) -> Any:
        # PySide6's own methods would take precedence over methods set on the class.
        if name == "connect":
            return partial(_connect, self)
        if name == "disconnect":
            return partial(_disconnect, self)
        return find(self, name)

    return find_attribute


def class_name(obj: Any) -> str:
    """The name of the C++ class of ``obj``; for a Python subclass, of the C++ class that it extends."""
    return next(cls.__name__ for cls in type(obj).__mro__ if is_cpp(cls))


def is_cpp(cls: type) -> bool:
    """Whether this class represents a C++ class in Slicer."""
    return cls.__module__.startswith("PySide6.") or cls.__module__ in STAND_IN_MODULES


def _qobject_classes() -> Iterator[type]:
    for module in QT_MODULES:
        for name in dir(module):
            cls = getattr(module, name)
            if inspect.isclass(cls) and issubclass(cls, QtCore.QObject) and hasattr(cls, "staticMetaObject"):
                yield cls


def _own_properties(cls: Any) -> list[str]:
    """The properties of ``cls``: those it adds, and inherited ones whose getter it redeclares."""
    meta = cls.staticMetaObject
    names = [meta.property(index).name() for index in range(meta.propertyCount())]
    added = set(names[meta.propertyOffset() :])
    return [name for name in dict.fromkeys(names) if (name in added or name in vars(cls)) and name not in _VIRTUAL]


class QtProperty:
    """A property that is an attribute of objects.

    On the class, the original attribute stays available, because QTimer has both a property and a function singleShot.
    """

    def __init__(self, cls: Any, name: str) -> None:
        capital = name[0].upper() + name[1:]
        self._name = name
        self.of_class = getattr(cls, name, None)
        getters = (self.of_class, getattr(cls, "is" + capital, None))
        is_static = isinstance(inspect.getattr_static(cls, name, None), staticmethod)
        self._get = None if is_static else next(filter(callable, getters), None)
        self._setter = "set" + capital
        self._set = getattr(cls, self._setter, None)

    def __get__(self, owner: Any, cls: type) -> Any:
        if owner is None:
            return self.of_class
        value = self._get(owner) if self._get else _read_property(owner, self._name)
        return tuple(value) if isinstance(value, list) else value

    def __set__(self, owner: Any, value: Any) -> None:
        if isinstance(self.__get__(owner, type(owner)), bool):
            value = bool(value)
        try:
            if self._set is not None:
                # The setter is virtual in C++, so a stand-in's setter takes precedence.
                getattr(type(owner), self._setter, self._set)(owner, value)
                return
        except (TypeError, ValueError):
            if not isinstance(value, int):
                raise
        if not _write_property(owner, self._name, value):
            raise FakeSlicerError(f"{class_name(owner)}.{self._name} cannot be set to {value!r}")


def _set_known_attribute(self: Any, name: str, value: Any) -> None:
    for cls in type(self).__mro__:
        if name in vars(cls) and hasattr(vars(cls)[name], "__set__"):
            vars(cls)[name].__set__(self, value)
            return
    # PySide6 itself stores signals and added slots in objects, the latter under names that start with two underscores.
    is_internal = name.startswith("__") or isinstance(value, QtCore.SignalInstance)
    if is_cpp(type(self)) and not is_internal:
        raise AttributeError(
            f"'{name}' does not exist on {class_name(self)} and creating new attributes on C++ objects is not allowed"
        )
    self.__dict__[name] = value


def _dynamic_property(self: Any, name: str) -> Any:
    value = _read_property(self, name)
    return tuple(value) if isinstance(value, list) else value


def arguments_for(receiver: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first ``arguments`` of a signal, as many as ``receiver`` accepts."""
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return arguments
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return arguments[: len(positional)]


def _connect(self: Any, signature: str, receiver: Any, slot: str | None = None) -> bool:
    """``obj.connect("clicked(bool)", function)`` or ``obj.connect("clicked(bool)", other, "setEnabled(bool)")``."""
    if slot is not None:
        receiver = getattr(receiver, slot.split("(")[0])
    if not callable(receiver):
        raise FakeSlicerError(f"{signature} of {class_name(self)} is connected to {receiver!r}, which cannot be called")
    stand_in = getattr(type(self), "_connect_base", None)
    if stand_in is not None and stand_in(self, signature, receiver):
        return True
    count = _argument_count(self, signature)

    def call(*arguments: Any) -> None:
        with running_slot():
            receiver(*arguments_for(receiver, arguments))

    # PySide6 inspects the number of parameters of the slot.
    deliver = (
        lambda: call(),
        lambda a: call(a),
        lambda a, b: call(a, b),
        lambda a, b, c: call(a, b, c),
        lambda a, b, c, d: call(a, b, c, d),
    )[count]
    _signal(self, signature).connect(deliver)
    self.__dict__.setdefault("_deliveries", []).append((_normalized(signature), receiver, deliver))
    return True


def _disconnect(self: Any, signature: str, receiver: Any) -> bool:
    stand_in = getattr(type(self), "_disconnect_base", None)
    if stand_in is not None and stand_in(self, signature, receiver):
        return True
    deliveries = self.__dict__.get("_deliveries", [])
    for entry in deliveries:
        if entry[0] == _normalized(signature) and entry[1] == receiver:
            deliveries.remove(entry)
            _signal(self, signature).disconnect(entry[2])
            return True
    return False


def _normalized(signature: str) -> str:
    return bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()


def _argument_count(obj: Any, signature: str) -> int:
    # Not obj.metaObject(): once obj is deleted, PySide6 treats every reference to that meta object as deleted.
    meta: Any = next(cls for cls in type(obj).__mro__ if cls.__module__.startswith("PySide6.")).staticMetaObject
    index = meta.indexOfSignal(_normalized(signature))
    if index < 0:
        raise FakeSlicerError(f"{class_name(obj)} has no signal {signature}")
    return int(meta.method(index).parameterCount())


def _signal(obj: Any, signature: str) -> Any:
    return getattr(obj, signature.split("(")[0])


def _let_processes_take_text() -> None:
    write = QtCore.QProcess.write

    def write_text(self: Any, data: Any) -> int:
        return int(write(self, data.encode() if isinstance(data, str) else data))

    QtCore.QProcess.write = write_text
