"""The worker's own way in and out, apart from what libraries read and print."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from ..worker_protocol import Event, encode


class Channel:
    """Requests from the caller, events to the caller; both ends belong to this process alone.

    Opening it takes the standard streams away from everyone else in the process: what is printed from then on, by
    Python or by C code, goes to the standard error, and reading the standard input finds its end. The private copies
    are not inherited by child processes, so none can keep the caller waiting for an end.
    """

    def __init__(self) -> None:
        self._requests: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._events = os.dup(1)
        self._lock = threading.Lock()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def lines(self) -> Iterator[bytes]:
        """The lines that arrive, until the caller closes its end."""
        yield from self._requests

    def send(self, event: Event) -> None:
        """Write ``event``. A caller that reads no more is no error here: the end of the input tells of it."""
        line = encode(event)
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._events, line) :]
            except OSError:
                return
