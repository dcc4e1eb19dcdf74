"""The modules ``qt`` and ``ctk`` as Slicer's Python sees them."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from fake_slicer import ctk_widgets
from fake_slicer.base import StandIn
from fake_slicer.pythonqt import QT_MODULES

# PySide6's own additions, which PythonQt does not have.
_ABSENT = {"Signal", "Slot", "Property", "SIGNAL", "SLOT", "ClassInfo", "QEnum", "QFlag"}


class QtModule(ModuleType):
    """All of Qt's names in one module; the names in ``replaced`` take precedence."""

    def __init__(self, **replaced: Any) -> None:
        super().__init__("qt")
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        if name not in _ABSENT and not name.startswith("__"):
            for module in QT_MODULES:
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


@cache
def ctk_module() -> ModuleType:
    """The module ``ctk`` with the stand-ins for CTK's widgets."""
    module = ModuleType("ctk")
    module.__dict__.update(stand_ins_of(ctk_widgets))
    return module


def stand_ins_of(module: ModuleType) -> dict[str, type]:
    """The stand-ins defined in a module of the fake Slicer, by the names of the real classes."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, StandIn)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
