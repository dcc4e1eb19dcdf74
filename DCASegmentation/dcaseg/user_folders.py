"""The user's home folder and cache folder.

The panel imports this file too, so it uses only Python's standard library.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

from .temp_paths import clean, make_partial_path


def get_home_folder() -> Path | None:
    """The user's home folder; None if the system knows none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expand_user(path: Path | str) -> Path:
    """``path`` with a leading ``~`` replaced by the home folder; unchanged if there is no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def provide_home() -> None:
    """Set HOME and USER for this process and its children if the system knows no home folder or user name.

    Some libraries (matplotlib, bokeh, torch) look them up on import and fail without them.
    """
    if get_home_folder() is None:
        os.environ["HOME"] = str(get_home_or_temporary())
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"


def get_home_or_temporary() -> Path:
    """The user's home folder, or a substitute in the system's temporary folder if there is none.

    The substitute is the same in each run, and only this user can write to it, because models and compiled networks
    are read from it. If another user owns a folder of that name, the substitute is a new folder for this run.
    """
    return get_home_folder() or _make_temporary_home()


@cache
def _make_temporary_home() -> Path:
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
    # The next process removes it, once this one has ended.
    clean(folder.parent)
    own = make_partial_path(folder)
    own.mkdir(mode=0o700)
    return own


VARIABLE = "DCA_CACHE"
"""The environment variable that sets the cache folder."""


def cache_folder() -> Path:
    """The folder set by DCA_CACHE, else ``dca`` in the user's cache folder of this system. It may not exist yet."""
    if named := os.environ.get(VARIABLE):
        return expand_user(named)
    home = get_home_or_temporary()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "dca"
