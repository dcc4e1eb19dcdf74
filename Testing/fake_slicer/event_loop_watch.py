"""Measures how long the window was blocked: the times in which Qt's event loop processed nothing."""

from __future__ import annotations

import time
from types import TracebackType

from PySide6 import QtCore

_MILLISECONDS = 10
_WORTH_NOTING = 0.1  # s


class EventLoopWatch:
    """A context with a timer that should fire every 10 ms.

    ``blocks`` lists each delay: when it began, how long it was, and how much CPU time this thread used in it (all in
    s). On a busy computer the delay also includes waiting for the CPU, which the CPU time does not.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[float, float, float]] = []
        self._timer = QtCore.QTimer()
        self._timer.setInterval(_MILLISECONDS)
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._note)
        self._start = self._last = self._computed = 0.0

    def __enter__(self) -> EventLoopWatch:
        self._start = self._last = time.monotonic()
        self._computed = time.thread_time()
        self._timer.start()
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.stop()
        self._note()

    def _note(self) -> None:
        now, computed = time.monotonic(), time.thread_time()
        late = now - self._last - _MILLISECONDS / 1000
        if late > _WORTH_NOTING:
            self.blocks.append((self._last - self._start, late, computed - self._computed))
        self._last, self._computed = now, computed
