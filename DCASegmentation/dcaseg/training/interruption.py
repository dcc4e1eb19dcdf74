"""Signals during training: the first one ends the run after the step, a second one immediately."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

MESSAGE = "The run will be saved and end after this step. Press Ctrl+C again to end now, without saving."

# A terminal that is closed, or a lost connection, sends SIGHUP. Windows has none.
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

# One key press may arrive twice: a launcher forwards the Ctrl+C that its processes also got from the terminal.
_SAME_PRESS_SECONDS = 0.5


class Interruption:
    """A context manager in which SIGINT, SIGTERM and SIGHUP set ``requested``; the code inside stops where it can.

    A second signal, more than half a second later, sets ``immediate`` and raises KeyboardInterrupt. Signals that the
    process ignores stay ignored. Outside of the main thread, the only one that can handle signals, nothing changes.
    ``notify`` receives a message for the user at the first signal.
    """

    def __init__(self, notify: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self.immediate = False
        self._notify = notify
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            with suppress(ValueError):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self.requested = True
            if self._notify is not None:
                # The signal may have arrived while the program was writing to the same stream.
                with suppress(RuntimeError, OSError, ValueError):
                    self._notify(MESSAGE)
        elif now - self._first > _SAME_PRESS_SECONDS:
            self.immediate = True
            raise KeyboardInterrupt
