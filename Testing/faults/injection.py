"""Faults of the operating system, injected into this process before one of the operations that change a folder.

Python announces such operations to audit hooks (PEP 578) before it does them; ``os.fsync`` and the exchange of two
folders, which it does not announce, are wrapped. Only operations below the given folder are counted.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dcaseg.imaging import writers as writing

KILL, FULL, READ_ONLY, DENIED, BROKEN, INTERRUPT, TERMINATE = (
    *("kill", "disk full", "read-only", "denied", "I/O error", "Ctrl+C", "SIGTERM"),
)
ERRORS = {
    FULL: errno.ENOSPC,
    READ_ONLY: errno.EROFS,
    DENIED: errno.EACCES,
    BROKEN: errno.EIO,
}

_RENAMED, _REMOVED, _MADE, _WRITTEN, _SYNCED = "rename", "remove", "make", "open", "fsync"
_EVENTS = {
    "os.rename": _RENAMED,
    "os.remove": _REMOVED,
    "os.rmdir": _REMOVED,
    "os.mkdir": _MADE,
    "os.symlink": _MADE,
    "os.link": _MADE,
    "os.truncate": _WRITTEN,
    "open": _WRITTEN,
}


class Injector:
    """Counts the operations below ``folder``; ``act(path)`` is called before the one of the number ``at``, from 1 on.

    There is no way to take an audit hook away again: it belongs into a process that ends soon.
    """

    def __init__(self, folder: Path, at: int | None = None, act: Callable[[Any], None] | None = None) -> None:
        self.count = 0
        self.happened = ""
        self._folder = str(folder)
        self._at = at
        self._act = act
        self._is_acting = False

    def install(self) -> None:
        """Begin to count."""
        fsync, exchange = os.fsync, writing.exchange

        def counted_fsync(descriptor: Any) -> None:
            self._note(_SYNCED)
            fsync(descriptor)

        def counted_exchange(one: Path, other: Path) -> bool:
            self._note(_RENAMED)
            return exchange(one, other)

        os.fsync = counted_fsync
        writing.exchange = counted_exchange
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = _EVENTS.get(event)
        if kind is None or self._is_acting or not self._is_below(event, arguments):
            return
        if event == "open":
            mode, flags = arguments[1], arguments[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or any(sign in str(mode or "") for sign in "wax+")
            if not writes:
                return
        # The error of a link names what it points to and the link itself; the link is what could not be made.
        self._note(kind, arguments[1] if event in ("os.link", "os.symlink") else arguments[0])

    def _is_below(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = Path(os.fsdecode(path))
        if not name.is_absolute() and event in ("os.remove", "os.rmdir") and arguments[-1] not in (None, -1):
            # shutil.rmtree names files within a folder that it holds open.
            name = Path(f"/proc/self/fd/{arguments[-1]}").readlink() / name
        return str(name).startswith(self._folder)

    def _note(self, kind: str, path: Any = None) -> None:
        self.count += 1
        if self.count == self._at and self._act is not None:
            self.happened = kind
            self._is_acting = True
            try:
                self._act(path)
            finally:
                self._is_acting = False


def kill(_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def error_of(fault: str) -> Callable[[Any], None]:
    """Raises the error that the operating system gives for ``fault``, with the name of the file where it has one."""

    def fail(path: Any) -> None:
        raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]), *([] if path is None else [path]))

    return fail


def signal_of(fault: str) -> Callable[[Any], None]:
    """Sends this process the signal of ``fault``; the command line answers both as Ctrl+C."""
    return lambda _: signal.raise_signal(signal.SIGINT if fault == INTERRUPT else signal.SIGTERM)


def interrupt_after(seconds: float) -> None:
    """Ctrl+C from outside, at a moment that has nothing to do with what the process does."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def limit(kind: str, value: int) -> None:
    """A limit of the system on this process: bytes of a file, open files, bytes of memory."""
    name = {
        "file size": resource.RLIMIT_FSIZE,
        "open files": resource.RLIMIT_NOFILE,
        "memory": resource.RLIMIT_AS,
    }[kind]
    if kind == "file size":
        # The write then fails, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(name, (value, resource.getrlimit(name)[1]))
