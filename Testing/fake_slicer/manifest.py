"""The members of Slicer's and CTK's real widget classes, taken from their public headers.

``widget_members.json`` contains the classes that the module uses; ``make_manifest.py`` writes it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from fake_slicer.pythonqt import QT_MODULES, FakeSlicerError


@cache
def classes() -> dict[str, dict[str, Any]]:
    """Class name -> its base, properties, signals, and slots (methods that scripts may call)."""
    return json.loads(Path(__file__).with_name("widget_members.json").read_text(encoding="utf-8"))


def chain(class_name: str) -> list[str]:
    """The class and its bases in the manifest, then the Qt class that they extend."""
    names = []
    while class_name in classes():
        names.append(class_name)
        class_name = classes()[class_name]["base"]
    return [*names, class_name]


def qt_class(class_name: str) -> type:
    """The Qt class of this name, or the one that the class of Slicer or CTK extends."""
    name = chain(class_name)[-1]
    for module in QT_MODULES:
        if hasattr(module, name):
            return getattr(module, name)
    raise FakeSlicerError(f"Neither Qt, CTK, nor Slicer has a class {class_name}")


def members(class_name: str, kind: str) -> set[str]:
    """The entries of one ``kind`` ("properties", "signals", "slots") that are not from Qt's own classes."""
    return {entry for name in chain(class_name)[:-1] for entry in classes()[name][kind]}


def has_property(class_name: str, name: str) -> bool:
    return name in members(class_name, "properties") or _meta(class_name).indexOfProperty(name) >= 0


def has_signal(class_name: str, signature: str) -> bool:
    return signature in members(class_name, "signals") or _meta(class_name).indexOfSignal(signature) >= 0


def has_slot(class_name: str, signature: str) -> bool:
    return signature in members(class_name, "slots") or _meta(class_name).indexOfMethod(signature) >= 0


def has_member(class_name: str, name: str) -> bool:
    """Whether scripts can use ``widget.name``: a property, a signal, or a method with any signature."""
    if name in members(class_name, "properties"):
        return True
    named = members(class_name, "signals") | members(class_name, "slots")
    if any(signature.split("(")[0] == name for signature in named):
        return True
    return hasattr(qt_class(class_name), name)


def _meta(class_name: str) -> Any:
    return qt_class(class_name).staticMetaObject
