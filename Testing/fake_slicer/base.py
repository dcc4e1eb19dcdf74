"""The building blocks of stand-ins for Slicer's C++ widgets: signals that carry VTK objects, and plain properties."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fake_slicer.pythonqt import FakeSlicerError, arguments_for, class_name, running_slot


class StandIn:
    """Base class of the stand-ins, listed before their PySide6 class. They keep their state in ``self._state``."""

    @property
    def _state(self) -> SimpleNamespace:
        return self.__dict__.setdefault("_stand_in_state", SimpleNamespace())

    def _connect_base(self, signature: str, receiver: Callable[..., Any]) -> bool:
        signal = getattr(type(self), signature.split("(")[0], None)
        if not isinstance(signal, Signal):
            return False
        _BoundSignal(self, signal).connect_as(signature, receiver)
        return True

    def _disconnect_base(self, signature: str, receiver: Callable[..., Any]) -> bool:
        receivers = self.__dict__.get("_receivers", [])
        if (signature, receiver) not in receivers:
            return False
        receivers.remove((signature, receiver))
        return True


class Signal:
    """A signal with all its signatures; ``widget.signal.connect`` uses the first one."""

    def __init__(self, *signatures: str) -> None:
        self.signatures = signatures

    def __get__(self, owner: Any, cls: type) -> Any:
        return self if owner is None else _BoundSignal(owner, self)


class _BoundSignal:
    def __init__(self, owner: Any, signal: Signal) -> None:
        self._owner, self._signal = owner, signal

    @property
    def _receivers(self) -> list[tuple[str, Callable[..., Any]]]:
        return self._owner.__dict__.setdefault("_receivers", [])

    def connect_as(self, signature: str, receiver: Callable[..., Any]) -> None:
        if signature.replace(" ", "") not in self._signal.signatures:
            raise FakeSlicerError(f"{class_name(self._owner)} has no signal {signature}")
        self._receivers.append((signature, receiver))

    def connect(self, receiver: Callable[..., Any]) -> None:
        self.connect_as(self._signal.signatures[0], receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> None:
        self._receivers.remove((self._signal.signatures[0], receiver))

    def emit(self, *arguments: Any) -> None:
        self.emit_as(self._signal.signatures[0], *arguments)

    def emit_as(self, signature: str, *arguments: Any) -> None:
        if self._owner.signalsBlocked():
            return
        for connected, receiver in list(self._receivers):
            if connected == signature:
                try:
                    with running_slot():
                        receiver(*arguments_for(receiver, arguments))
                except Exception:  # as in Qt, an error in a slot is reported, and the sender continues
                    sys.excepthook(*sys.exc_info())


class Plain:
    """A property that only stores its value, converted to the type of its default."""

    def __init__(self, default: Any) -> None:
        self._default = default

    def __set_name__(self, cls: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, cls: type) -> Any:
        return self if owner is None else owner.__dict__.get(f"_plain_{self._name}", self._default)

    def __set__(self, owner: Any, value: Any) -> None:
        owner.__dict__[f"_plain_{self._name}"] = type(self._default)(value)
