"""What goes wrong, told in one line, and the exit codes of ``dca``."""

from __future__ import annotations

import errno
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from typer import Abort, TyperException

from ..errors import Cancelled, UserError, is_out_of_memory
from .console import say_error, say_traceback


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    CANCELLED = 130


# What a cancelled command says that it has kept; empty where it has not said anything.
_kept: list[str] = []
_NOTHING_HALF_WRITTEN = "What is complete was kept, what was half written was removed. Run the command again."


@contextmanager
def says_when_cancelled(text: Callable[[], str]) -> Iterator[None]:
    """If the block is cancelled, the command ends with ``text()``: what was saved, and how to go on."""
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        _kept[:] = [text()]
        raise


def exit_code_of(command: Callable[[], object], debug: bool = False) -> int:
    """Run ``command``; report what it raises in one line on standard error, with a traceback only for ``debug``.

    A polite request to end (SIGTERM) ends the command as Ctrl+C does: whatever is half-written is removed, a training
    run is saved.
    """
    before = _ask_like_ctrl_c()
    _kept.clear()
    try:
        code = command()
    # Everything that ends a command early is reported here, and nowhere else.
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if debug:
            say_traceback(traceback.format_exc())
        code, message = _report(error)
        say_error(message)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    if code == ExitCode.CANCELLED:
        # Said here, since Typer turns Ctrl+C into this code without a word.
        say_error(f"Cancelled. {_kept[0] if _kept else _NOTHING_HALF_WRITTEN}")
    return code if isinstance(code, int) else ExitCode.DONE


def _report(error: BaseException) -> tuple[ExitCode, str]:
    """The exit code for ``error`` and its line; the line of a cancelled command is said by the caller."""
    if isinstance(error, UserError):
        return ExitCode.BAD_INPUT, f"Error: {error}"
    if isinstance(error, TyperException):
        # Empty where Typer has answered a command without arguments by its help page.
        problem = error.format_message().rstrip(".")
        return ExitCode.BAD_INPUT, f"Error: {problem}. Add --help to see what is possible." if problem else ""
    if isinstance(error, Cancelled | KeyboardInterrupt | Abort):
        return ExitCode.CANCELLED, ""
    if is_out_of_memory(error):
        return ExitCode.BAD_INPUT, "Error: There is not enough memory. Close other programs, or use a smaller volume."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.BAD_INPUT, "Error: The disk is full. Free some space, or choose a folder on another disk."
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return ExitCode.BAD_INPUT, f"Error: {error.filename or 'The disk'} is read-only. Choose another folder."
    if isinstance(error, RuntimeError) and any(
        sign in str(error).lower() for sign in ("out of memory", "can't allocate memory", "failed to allocate memory")
    ):
        # torch's, of a GPU or of the computer; loading torch here to name its class would take seconds.
        return ExitCode.BAD_INPUT, "Error: There is not enough memory. Close other programs, or use --device cpu."
    if isinstance(error, PermissionError):
        return ExitCode.BAD_INPUT, f"Error: {error.filename} may not be written or read. Check its permissions."
    return (
        ExitCode.UNEXPECTED,
        f"Error: Something unexpected happened ({type(error).__name__}: {error}). Run again with --debug to see where.",
    )


def _ask_like_ctrl_c() -> signal.Handlers | Callable[..., object] | int | None:
    try:
        return signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        # Only the main thread may; elsewhere (some tests, embedding) nobody sends signals to a command.
        return None
