"""What ``dca`` prints and how: results on standard output, errors and progress on standard error, exit codes.

Names of files, series, models and patients come from strangers. All that is printed goes through ``shown``: control
characters appear as escapes, such as \x1b, and no text is ever taken for Rich's markup.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

Report = Callable[[float, str], None]

# Without a terminal, as in a log file, one line in so many seconds says that the work goes on.
_QUIET_SECONDS = 20.0


def prepare_streams(debug: bool = False) -> None:
    """Make standard output and error take any text: what their encoding lacks is replaced by a question mark.

    Warnings of the libraries underneath are for developers: they are shown with ``debug``, or where Python is asked
    for them, alone. Processes that the command starts do the same.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not debug and not sys.warnoptions and not os.environ.get("PYTHONWARNINGS"):
        os.environ["PYTHONWARNINGS"] = "ignore"
        warnings.simplefilter("ignore")


def shown(text: str) -> str:
    """``text`` with escapes in place of all that is not printable: a terminal obeys control characters, line breaks
    forge lines, and marks of direction turn names around."""
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else _escape(letter) for letter in text
    )


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


class _Quieted(Console):
    """A console whose reader, such as ``head``, may go away: the work still goes on to its end."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What Python itself still wants to flush at its end must not fail either.
        stream = sys.stderr if self.stderr else sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@cache
def output() -> Console:
    """The console of results. It asks for ``sys.stdout`` anew each time it prints."""
    return _Quieted(highlight=False)


@cache
def messages() -> Console:
    """The console of notes, errors and progress."""
    return _Quieted(stderr=True, highlight=False)


@dataclass
class _Output:
    quiet: bool = False
    as_json: bool = False


_settings = _Output()


def set_output(quiet: bool = False, as_json: bool = False) -> None:
    """What the command prints: with ``quiet`` errors and notes only, with ``as_json`` its result as JSON and no
    text."""
    _settings.quiet, _settings.as_json = quiet, as_json


def say(text: str) -> None:
    """Print one line of the result, wrapped by the terminal only."""
    if not (_settings.quiet or _settings.as_json):
        output().print(shown(text), soft_wrap=True, markup=False)


def show(result: Table) -> None:
    """Print a table of the result."""
    if not (_settings.quiet or _settings.as_json):
        output().print(result)


def print_json(result: Callable[[], object]) -> None:
    """Print ``result()`` as one JSON object, if the user asked for JSON."""
    if _settings.as_json:
        output().print(json.dumps(result(), ensure_ascii=True), soft_wrap=True, markup=False)


say_plain = say


def warn(text: str) -> None:
    """One line about something the user should know, on standard error."""
    messages().print(f"Note: {_one_line(text)}", style="yellow", soft_wrap=True, markup=False)


def say_error(text: str) -> None:
    """One line about what went wrong, on standard error; nothing for an empty text."""
    if text:
        messages().print(_one_line(text), style="red", soft_wrap=True, markup=False)


def say_traceback(text: str) -> None:
    """The lines of a traceback, on standard error."""
    for line in text.splitlines():
        messages().print(shown(line), soft_wrap=True, markup=False)


class _PlainTable(Table):
    """A table whose cells show their text as it is."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """As Rich's; a text is neither markup nor a command to the terminal."""
        super().add_row(*(Text(shown(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns in ``numbers`` are aligned to the right."""
    result = _PlainTable(title=Text(shown(title)), title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        result.add_column(Text(shown(column)), justify="right" if column in numbers else "left")
    return result


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A progress function that draws a bar with phase and remaining time, or without a terminal a line now and then."""
    console = messages()
    if _settings.quiet:
        yield lambda fraction, message: None
        return
    if not console.is_terminal:
        yield _sparing_lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Starting", total=1.0)
        yield lambda fraction, message: bar.update(task, completed=fraction, description=shown(message))


def _sparing_lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Report:
    said = clock()

    def report(fraction: float, message: str) -> None:
        nonlocal said
        if clock() - said >= _QUIET_SECONDS:
            said = clock()
            console.print(f"{fraction:4.0%}  {shown(message)}", soft_wrap=True, markup=False)

    return report


def _one_line(text: str) -> str:
    return shown(" ".join(text.split()))


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
