"""What ``dca`` says, and how: results on standard output, errors and progress on standard error.

Names of files, series, models and patients come from strangers. All that is printed goes through ``shown``: control
characters appear as escapes, such as \\x1b, and no text is ever taken for Rich's markup.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

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


def say(text: str) -> None:
    """One line of the result, wrapped by the terminal alone."""
    output().print(shown(text), soft_wrap=True, markup=False)


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
