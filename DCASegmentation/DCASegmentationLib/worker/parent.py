"""Noticing that the process which started the worker is gone, where the end of the input does not tell."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_SECONDS_BETWEEN_LOOKS = 0.5


def when_parent_ends(then: Callable[[], object]) -> None:
    """Call ``then`` from a thread of its own once this process has lost its parent.

    The input ends with the parent too, unless another process holds its other end. On Windows, where a process keeps
    the number of a parent that is gone, the end of the input is the only sign.
    """
    if os.name != "posix":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()
