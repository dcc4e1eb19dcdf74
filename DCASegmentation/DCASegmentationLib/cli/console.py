"""What ``dca`` says, and how: results on standard output, errors and progress on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

Report = Callable[[float, str], None]

# Without a terminal, as in a log file, one line in so many seconds says that the work goes on.
_QUIET_SECONDS = 20.0


class _Output(Console):
    """Standard output; when its reader, such as ``head``, has seen enough, the work still goes on to its end."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What Python itself still wants to flush at its end must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def output() -> Console:
    """The console of results. It asks for ``sys.stdout`` anew each time it prints."""
    return _Output(highlight=False)


@cache
def _messages() -> Console:
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line of the result; ``text`` may have Rich's markup, and is wrapped by the terminal alone."""
    output().print(text, soft_wrap=True)


def say_plain(text: str) -> None:
    """One line of the result as it is: for paths and names, which may hold brackets."""
    output().print(text, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """One line about something the user should know, on standard error."""
    _messages().print(f"Note: {_one_line(text)}", style="yellow", soft_wrap=True, markup=False)


def say_error(text: str) -> None:
    """One line about what went wrong, on standard error; nothing for an empty text."""
    if text:
        _messages().print(_one_line(text), style="red", soft_wrap=True, markup=False)


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns in ``numbers`` are aligned to the right."""
    result = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left")
    return result


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A progress function that draws a bar with phase and remaining time, or without a terminal a line now and then."""
    console = _messages()
    if not console.is_terminal:
        yield _sparing_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Starting", total=1.0)
        yield lambda fraction, message: bar.update(task, completed=fraction, description=message)


def _sparing_lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Report:
    said = clock()

    def report(fraction: float, message: str) -> None:
        nonlocal said
        if clock() - said >= _QUIET_SECONDS:
            said = clock()
            console.print(f"{fraction:4.0%}  {message}", soft_wrap=True, markup=False)

    return report


def _one_line(text: str) -> str:
    return " ".join(text.split())
