"""The user's home folder and cache folder.

Read by the panel and the worker alike, so this file knows Python's standard library alone.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path


def home_folder() -> Path | None:
    """The user's home folder; None where the system knows of none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expanded(path: Path | str) -> Path:
    """``path`` with a leading ``~`` replaced; as it is where there is no home folder to put there."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def provide_home() -> None:
    """Set HOME and USER for this process and those it starts where the system knows of no user.

    Libraries (matplotlib, bokeh, torch) ask for them when they are imported and fail without.
    """
    if home_folder() is None:
        os.environ["HOME"] = str(home_or_temporary())
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"


def home_or_temporary() -> Path:
    """The user's home folder, or in its place a folder of the system's temporary folder.

    The same one in each run, and one that only this user can write into: models and compiled networks are read from
    it. Where somebody else has taken its name it is a new one for this run.
    """
    return home_folder() or _temporary_home()


@cache
def _temporary_home() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"dca-home-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_ours = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        if stat.S_ISDIR(status.st_mode) and is_ours:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="dca-home-"))


VARIABLE = "DCA_CACHE"


def cache_folder() -> Path:
    """The folder that DCA_CACHE names, else ``dca`` in the user's cache folder of this system; it may not exist."""
    if named := os.environ.get(VARIABLE):
        return expanded(named)
    home = home_or_temporary()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "dca"
