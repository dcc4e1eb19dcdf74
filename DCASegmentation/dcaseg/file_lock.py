"""A lock that keeps a second process out of the folder of a cohort or a training run."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError
from .temp_paths import make_partial_path


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Lock ``file`` for this process. Raises OutputError if another process holds the lock or the file is unusable.

    The lock is an exclusive SQLite transaction: on Linux, macOS and Windows, the operating system releases it however
    the process ends.
    """
    try:
        connection = sqlite3.connect(file, timeout=0.5, isolation_level=None)
    except sqlite3.Error as error:
        raise OutputError(f"{file} cannot be used: {error}.", "Choose another folder with -o.") from None
    try:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        # The message of an error is decoded, too, and may quote a damaged file.
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if "locked" in str(error):
                if not _can_lock(file.parent):
                    raise OutputError(
                        f"The disk of {file.parent} does not support file locking.",
                        "Choose a folder on another disk with -o, or mount this one with file locking.",
                    ) from None
                raise OutputError(
                    f"Another run is using {file.parent}.",
                    "Wait until it has finished, or choose another folder with -o.",
                ) from None
            remedy = "Choose another folder with -o."
            if not isinstance(error, sqlite3.OperationalError):
                # The file was not written by SQLite, so it is not a lock and can be deleted.
                remedy = f"Delete {file}, or choose another folder with -o."
            raise OutputError(f"{file} cannot be used: {error}.", remedy) from None
        yield
    finally:
        connection.close()


def _can_lock(folder: Path) -> bool:
    """Whether files in ``folder`` can be locked. SQLite reports a disk without locks like a lock of another process."""
    try:
        import fcntl
    except ImportError:
        return True
    # Another file: closing any handle of a file would release this process's own lock on it.
    probe = make_partial_path(folder / "lock")
    try:
        with probe.open("xb") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
    finally:
        with suppress(OSError):
            probe.unlink()
    return True


@contextmanager
def locked_folder(folder: Path, name: str) -> Iterator[None]:
    """Create ``folder`` if it is missing, and lock its file ``name`` as ``locked`` does.

    If the block fails before it has written anything, the new folders are removed again, so that refused input leaves
    no empty folder behind.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{folder} is a file, not a folder.", "Choose another output folder.") from None
    is_new = not (folder / name).exists()
    has_lock = False
    try:
        with locked(folder / name):
            has_lock = True
            yield
    except BaseException:
        with suppress(OSError):
            # A file that another process has locked must stay.
            if has_lock and is_new and [entry.name for entry in folder.iterdir()] == [name]:
                (folder / name).unlink()
            for path in missing:
                path.rmdir()
        raise
