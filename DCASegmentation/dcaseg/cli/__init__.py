"""The command line ``dca``: one file for each command.

No file of this package imports torch, MONAI, SimpleITK or slicer before its command runs, so that ``dca --help``
answers at once: the library is imported inside of the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``dca`` with ``arguments`` (those of the process, when None); returns the exit code."""
    from ..user_folders import provide_home
    from .app import build_app
    from .console import exit_code_of, prepare_streams, set_output

    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here, so that they can stand anywhere, before or after the command.
    switches = {name: name in given for name in ("--debug", "--quiet", "--json")}
    given = [argument for argument in given if argument not in switches]
    debug = switches["--debug"]
    set_output(quiet=switches["--quiet"], as_json=switches["--json"])
    prepare_streams(debug)
    provide_home()
    with _lasting_messages():
        return exit_code_of(lambda: build_app()(args=given, prog_name="dca", standalone_mode=False), debug)


class _Messages:
    """Standard error, of which a failure is no failure of the work: what cannot be said is left unsaid."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        # Python flushes what is left when it ends, and that must not fail either.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream.flush()


@contextmanager
def _lasting_messages() -> Iterator[None]:
    """A full disk, a closed terminal or a reader that went away behind standard error do not end the command."""
    before = sys.stderr
    # None where the command was started with it closed.
    sys.stderr = _Messages(open(os.devnull, "w") if before is None else before)  # noqa: SIM115, PTH123
    try:
        yield
    finally:
        sys.stderr = before
