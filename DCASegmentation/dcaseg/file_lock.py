"""One program at a time in a folder: a cohort's, or a training run's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds ``file`` for this process alone; raises OutputError where another one holds it.

    An exclusive transaction of SQLite: the operating system takes the lock back however the process ends, on Linux,
    macOS and Windows alike.
    """
    try:
        connection = sqlite3.connect(file, timeout=0.5, isolation_level=None)
    except sqlite3.Error as error:
        raise OutputError(f"{file} cannot be used: {error}.", "Choose another folder with -o.") from None
    try:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise OutputError(
                    f"Another run is at work on {file.parent}.", "Wait for its end, or choose another folder with -o."
                ) from None
            remedy = "Choose another folder with -o."
            if not isinstance(error, sqlite3.OperationalError):
                # Not what SQLite has made; it holds nothing.
                remedy = f"Delete {file}, or choose another folder with -o."
            raise OutputError(f"{file} cannot be used: {error}.", remedy) from None
        yield
    finally:
        connection.close()


@contextmanager
def locked_folder(folder: Path, name: str) -> Iterator[None]:
    """Makes ``folder`` where it is missing, and holds its file ``name`` as ``locked`` does.

    If the block fails before it has written anything, what was made here is removed again: input that is refused
    leaves no empty folder behind.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    new = not (folder / name).exists()
    held = False
    try:
        with locked(folder / name):
            held = True
            yield
    except BaseException:
        with suppress(OSError):
            # A file that another process holds is not ours to remove.
            if held and new and [entry.name for entry in folder.iterdir()] == [name]:
                (folder / name).unlink()
            for each in missing:
                each.rmdir()
        raise
