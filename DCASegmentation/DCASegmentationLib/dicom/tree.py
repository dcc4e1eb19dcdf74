"""The files below a folder, one after the other, whatever the tree holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(root: Path, leave_out: Path, unreadable: Callable[[Path, OSError], None]) -> Iterator[Path]:
    """Every file below ``root`` but those below ``leave_out``, folder by folder in the order of their names.

    Links to folders are not followed (they may lead in circles), links to files are. A folder that cannot be listed
    and a link that leads to itself are told to ``unreadable``. Memory: the names of one folder at a time.
    """
    if root.is_file():
        yield root
        return
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # One entry that cannot be looked at must not hide those after it.
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            if Path(entry.path).absolute() != leave_out:
                                folders.append(entry.path)
                        elif entry.is_file():
                            files.append(entry.path)
                    except OSError as error:
                        unreadable(Path(entry.path), error)
        except OSError as error:
            unreadable(Path(folder), error)
        waiting += sorted(folders, reverse=True)
        yield from map(Path, sorted(files))
