"""Output of ``dca``: results on standard output, errors and progress on standard error, and exit codes.

Names of files, series, models and patients are untrusted. All printed text passes through ``escape_unprintable``, which
shows control characters as escapes such as \x1b, and is never interpreted as Rich markup.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer import Abort, TyperException

from ..errors import Cancelled, UserError, is_out_of_memory
from ..types import ProgressCallback

# Seconds between lines of progress if the output is not a terminal, for example a log file.
_SECONDS_BETWEEN_LINES = 20.0


def prepare_streams(debug: bool = False) -> None:
    """Let standard output and error accept any text, and hide warnings of other libraries.

    A question mark replaces each character that the encoding lacks. Warnings of other libraries are for developers.
    They appear only with ``debug`` or if the user enabled them in Python (``-W``, ``PYTHONWARNINGS``). Child processes
    inherit this setting.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not debug and not sys.warnoptions and not os.environ.get("PYTHONWARNINGS"):
        os.environ["PYTHONWARNINGS"] = "ignore"
        warnings.simplefilter("ignore")
        # Says that a font lacks bold letters, for instance.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    log = logging.getLogger(_LIBRARY)
    if not any(isinstance(handler, _NoteHandler) for handler in log.handlers):
        log.addHandler(_NoteHandler(logging.WARNING))


_LIBRARY = __name__.partition(".")[0]


class _NoteHandler(logging.Handler):
    """Prints warnings that the library logs, such as those on files it reads, as notes for the user."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, without a traceback."""
        warn(record.getMessage())


def escape_unprintable(text: str) -> str:
    """Return ``text`` with escapes for characters that are not printable.

    A terminal executes control characters, line breaks can fake output lines, and direction marks can reverse names.
    """
    return "".join(char if char.isprintable() or unicodedata.category(char) == "Zs" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


class _PipeTolerantConsole(Console):
    """A console that lets the command finish if the reader of its output, such as ``head``, exits early."""

    def on_broken_pipe(self) -> None:
        """Stop printing instead of exiting, which is Rich's default."""
        self.quiet = True
        # Python flushes the stream when it exits, and that must not fail either.
        stream = sys.stderr if self.stderr else sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@cache
def get_stdout_console() -> Console:
    """Return the console for results. It looks up ``sys.stdout`` each time it prints."""
    return _PipeTolerantConsole(highlight=False)


@cache
def get_stderr_console() -> Console:
    """Return the console for notes, errors and progress."""
    return _PipeTolerantConsole(stderr=True, highlight=False)


@dataclass
class _Output:
    quiet: bool = False
    as_json: bool = False


_settings = _Output()


def set_output(quiet: bool = False, as_json: bool = False) -> None:
    """Choose what the command prints.

    ``quiet``: only errors and notes. ``as_json``: the result as JSON, without other text on standard output.
    """
    _settings.quiet, _settings.as_json = quiet, as_json


def print_line(text: str) -> None:
    """Print one line of the result. Only the terminal wraps it."""
    if not (_settings.quiet or _settings.as_json):
        get_stdout_console().print(escape_unprintable(text), soft_wrap=True, markup=False)


def print_table(rows: Table) -> None:
    """Print a table of the result."""
    if not (_settings.quiet or _settings.as_json):
        get_stdout_console().print(rows)


def print_json(result: Callable[[], object]) -> None:
    """Print ``result()`` as one JSON object, if the user asked for JSON."""
    if _settings.as_json:
        get_stdout_console().print(json.dumps(result(), ensure_ascii=True), soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a note on standard error, as one line."""
    get_stderr_console().print(f"Note: {_format_line(text)}", style="yellow", soft_wrap=True, markup=False)


def print_error(text: str) -> None:
    """Print an error on standard error, as one line. Prints nothing if ``text`` is empty."""
    if text:
        get_stderr_console().print(_format_line(text), style="red", soft_wrap=True, markup=False)


def print_traceback(text: str) -> None:
    """Print a traceback on standard error."""
    for line in text.splitlines():
        get_stderr_console().print(escape_unprintable(line), soft_wrap=True, markup=False)


class _PlainTable(Table):
    """A table that prints the text of its cells literally."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row, with control characters escaped and without interpreting markup."""
        super().add_row(
            *(Text(escape_unprintable(cell)) if isinstance(cell, str) else cell for cell in cells), **options
        )


def make_table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """Return an empty table. The columns in ``numbers`` are right-aligned."""
    result = _PlainTable(
        title=Text(escape_unprintable(title)), title_justify="left", title_style="bold", header_style="bold"
    )
    for column in columns:
        result.add_column(Text(escape_unprintable(column)), justify="right" if column in numbers else "left")
    return result


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """Yield a progress callback that draws a bar with the current step and the remaining time.

    Without a terminal it prints an occasional line instead.
    """
    console = get_stderr_console()
    if _settings.quiet:
        yield lambda fraction, message: None
        return
    if not console.is_terminal:
        yield _make_progress_printer(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Starting", total=1.0)
        yield lambda fraction, message: bar.update(task, completed=fraction, description=escape_unprintable(message))


def _make_progress_printer(console: Console, clock: Callable[[], float] = time.monotonic) -> ProgressCallback:
    last_printed = clock()

    def report(fraction: float, message: str) -> None:
        nonlocal last_printed
        if clock() - last_printed >= _SECONDS_BETWEEN_LINES:
            last_printed = clock()
            console.print(f"{fraction:4.0%}  {escape_unprintable(message)}", soft_wrap=True, markup=False)

    return report


def _format_line(text: str) -> str:
    return escape_unprintable(" ".join(text.split()))


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    CANCELLED = 130


# The message of the last ``cancellation_message`` block that was canceled, if any.
_cancellation_texts: list[str] = []
_DEFAULT_CANCELLATION_TEXT = "Completed output was kept; incomplete output was removed. Run the command again."


@contextmanager
def cancellation_message(text: Callable[[], str]) -> Iterator[None]:
    """If the block is canceled, end the command with the message ``text()``: what was saved and how to continue."""
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        _cancellation_texts[:] = [text()]
        raise


def run_command(command: Callable[[], object], debug: bool = False) -> int:
    """Run ``command`` and return its exit code.

    Errors are printed as one line on standard error; ``debug`` adds the traceback. SIGTERM ends the command like
    Ctrl+C: incomplete output is removed, and a training run is saved. So does SIGHUP, which a closed terminal sends,
    unless the command was started with ``nohup``.
    """
    previous_handlers = _handle_signals_like_ctrl_c()
    _cancellation_texts.clear()
    try:
        code = command()
    # The only place that reports errors which end a command.
    except BaseException as error:
        if isinstance(error, SystemExit):
            # Raised by the help page, which Typer prints, if the reader of the output exits early.
            if isinstance(error.__context__, BrokenPipeError):
                return ExitCode.DONE
            raise
        if debug:
            print_traceback(traceback.format_exc())
        code, message = _format_error(KeyboardInterrupt() if _is_interrupted_import(error) else error)
        print_error(message)
    finally:
        for number, previous_handler in previous_handlers.items():
            signal.signal(number, previous_handler)
    if code == ExitCode.CANCELLED:
        # Printed here, because Typer turns Ctrl+C into this exit code without a message.
        print_error(f"Canceled. {_cancellation_texts[0] if _cancellation_texts else _DEFAULT_CANCELLATION_TEXT}")
    return code if isinstance(code, int) else ExitCode.DONE


# What is wrong with a path or its disk, not with the program: too long a name, a loop of links, a lost share.
_ABOUT_FILES = {
    number
    for name in (
        "ENAMETOOLONG",
        "ELOOP",
        "ENOTDIR",
        "EISDIR",
        "EIO",
        "ESTALE",
        "ENODEV",
        "ENXIO",
        "EBUSY",
        "EXDEV",
        "EMFILE",
        "ENFILE",
        "ENOTCONN",
        "EHOSTDOWN",
        "ETIMEDOUT",
    )
    if (number := getattr(errno, name, None)) is not None
}


def _format_error(error: BaseException) -> tuple[ExitCode, str]:
    """Return the exit code and the message for ``error``. The message is empty if the command was canceled."""
    if isinstance(error, UserError):
        return ExitCode.BAD_INPUT, f"Error: {error}"
    if isinstance(error, TyperException):
        # Empty if Typer has printed the help page because the command has no arguments.
        problem = error.format_message().rstrip(".")
        return ExitCode.BAD_INPUT, f"Error: {problem}. Add --help to see the usage." if problem else ""
    if isinstance(error, Cancelled | KeyboardInterrupt | Abort):
        return ExitCode.CANCELLED, ""
    if is_out_of_memory(error):
        return ExitCode.BAD_INPUT, "Error: There is not enough memory. Close other programs, or use a smaller volume."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.BAD_INPUT, "Error: The disk is full. Free some space, or choose a folder on another disk."
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return ExitCode.BAD_INPUT, f"Error: {error.filename or 'The disk'} is read-only. Choose another folder."
    if isinstance(error, OSError) and error.errno in _ABOUT_FILES:
        where = f"{error.filename}: " if error.filename else ""
        return ExitCode.BAD_INPUT, f"Error: {where}{error.strerror}. Check the path, the disk and its connection."
    if isinstance(error, PermissionError):
        return ExitCode.BAD_INPUT, f"Error: Access to {error.filename} was denied. Check its permissions."
    return (
        ExitCode.UNEXPECTED,
        f"Error: An unexpected error occurred ({type(error).__name__}: {error}). "
        "Run the command again with --debug to see the traceback.",
    )


# Signals that interrupted the command.
_interruptions: list[int] = []


def _interrupt(number: int, frame: Any) -> None:
    _interruptions.append(number)
    signal.default_int_handler(number, frame)


def _is_interrupted_import(error: BaseException | None) -> bool:
    """Whether ``error`` came from Ctrl+C while a library was imported: some C extensions turn it into ImportError."""
    while error is not None:
        if isinstance(error, ImportError):
            return bool(_interruptions)
        error = error.__cause__ or error.__context__
    return False


def _handle_signals_like_ctrl_c() -> dict[int, Any]:
    """Let the signals that end a program raise KeyboardInterrupt. Returns the earlier handlers."""
    previous: dict[int, Any] = {}
    _interruptions.clear()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            continue
        # Only the main thread can set handlers. Other threads (some tests, embedding) receive no signals.
        with suppress(ValueError):
            handler = signal.getsignal(number)
            # Another handler of Ctrl+C belongs to a program that runs this command in its own process.
            if number != signal.SIGINT or handler is signal.default_int_handler:
                signal.signal(number, _interrupt)
            # None: a handler that was not set from Python.
            previous[number] = signal.SIG_DFL if handler is None else handler
    return previous
