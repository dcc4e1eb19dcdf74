"""Ctrl+C and SIGTERM while a run trains: the first one ends it between two steps, a second one at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

MESSAGE = "The run ends after this step and is saved; press Ctrl+C again to end at once, with the last checkpoint."

# A launcher passes on a Ctrl+C that the terminal has sent to its processes already, and a key may bounce.
_SAME_PRESS_SECONDS = 0.5


class Interruption:
    """Within its ``with`` block, SIGINT and SIGTERM set ``requested``; the block looks at it where it may stop.

    A second signal, more than half a second later, sets ``at_once`` and raises KeyboardInterrupt wherever the program
    is. A signal that the process ignores stays ignored. Outside the main thread, which alone may handle signals, the
    block changes nothing. ``say`` receives a line for the user at the first signal.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self.at_once = False
        self._say = say
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
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
            if self._say is not None:
                # The signal may have come while this very stream was written.
                with suppress(RuntimeError, OSError, ValueError):
                    self._say(MESSAGE)
        elif now - self._first > _SAME_PRESS_SECONDS:
            self.at_once = True
            raise KeyboardInterrupt
