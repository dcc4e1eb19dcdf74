"""The members of Qt's own classes that PythonQt exposes: names from its wrappers, and from Qt's meta objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fake_slicer.pythonqt import QT_MODULES


@cache
def wrapped() -> dict[str, list[str]]:
    """Class -> methods, static functions, and enumeration values. ``make_qt_members.py`` writes the file."""
    return json.loads(Path(__file__).with_name("qt_members.json").read_text(encoding="utf-8"))


def is_known(class_name: str) -> bool:
    return class_name in wrapped()


def is_property(class_name: str, name: str) -> bool:
    meta = _meta(class_name)
    return meta is not None and meta.indexOfProperty(name) >= 0


def has_member(class_name: str, name: str) -> bool:
    """Whether scripts can use ``object.name``."""
    return name in _meta_members(class_name) or any(name in wrapped().get(base, ()) for base in _bases(class_name))


def has_static(class_name: str, name: str) -> bool:
    """Whether scripts can use ``qt.Class.name``; PythonQt looks only at the class itself, not at its bases."""
    return name in wrapped()[class_name] or name in _enum_values(class_name)


def _class(class_name: str) -> Any:
    return next((getattr(module, class_name) for module in QT_MODULES if hasattr(module, class_name)), None)


def _bases(class_name: str) -> Iterator[str]:
    cls = _class(class_name)
    yield from ([class_name] if cls is None else [base.__name__ for base in cls.__mro__])


def _meta(class_name: str) -> Any:
    return getattr(_class(class_name), "staticMetaObject", None)


@cache
def _meta_members(class_name: str) -> frozenset[str]:
    meta = _meta(class_name)
    if meta is None:
        return frozenset()
    methods = {meta.method(index).name().data().decode() for index in range(meta.methodCount())}
    properties = {meta.property(index).name() for index in range(meta.propertyCount())}
    return frozenset(methods | properties) | _enum_values(class_name) | {"connect", "disconnect", "name"}


@cache
def _enum_values(class_name: str) -> frozenset[str]:
    meta = _meta(class_name)
    enums = [] if meta is None else [meta.enumerator(index) for index in range(meta.enumeratorCount())]
    return frozenset(enum.key(index) for enum in enums for index in range(enum.keyCount()))
