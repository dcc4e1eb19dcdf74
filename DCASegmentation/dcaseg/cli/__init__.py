"""The command line ``dca``, with one file for each command.

No file of this package imports torch, MONAI, SimpleITK or slicer at file scope, so that ``dca --help`` answers at once.
The commands import the library when they run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``dca`` and return its exit code. ``arguments`` defaults to those of the process."""
    with _ended_by_ctrl_c():
        from ..user_folders import provide_home
        from .app import build_app
        from .console import prepare_streams, run_command, set_output

    args = list(sys.argv[1:] if arguments is None else arguments)
    # Removed here, so that they can stand anywhere, before or after the command.
    switches = {name: name in args for name in ("--debug", "--quiet", "--json")}
    args = [arg for arg in args if arg not in switches]
    debug = switches["--debug"]
    set_output(quiet=switches["--quiet"], as_json=switches["--json"])
    prepare_streams(debug)
    provide_home()
    with _robust_stderr():
        try:
            return run_command(lambda: build_app()(args=args, prog_name="dca", standalone_mode=False), debug)
        except KeyboardInterrupt:
            # Pressed again while the message was printed.
            return 130
        finally:
            if arguments is None and threading.current_thread() is threading.main_thread():
                # Only Python's own shutdown is left, which would print a traceback.
                signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl+C end the process without a traceback while nothing has been started that must be ended properly."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _RobustStream:
    """A stream for messages that drops what cannot be written, so that a broken stream does not end the command."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if possible. Returns its length."""
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError):
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard(self) -> None:
        # Python flushes the stream when it exits, and that must not fail either.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream.flush()


@contextmanager
def _robust_stderr() -> Iterator[None]:
    """Keep the command running if standard error fails: a full disk, a closed terminal, or a reader that exited."""
    original = sys.stderr
    # None if the command was started with standard error closed.
    sys.stderr = _RobustStream(open(os.devnull, "w") if original is None else original)  # noqa: SIM115, PTH123
    try:
        yield
    finally:
        sys.stderr = original
