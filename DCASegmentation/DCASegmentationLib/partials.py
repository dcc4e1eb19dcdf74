"""The names that results bear until they are complete, and how to remove what an interrupted run left.

The process that writes may be ended at any moment; the one that ended it then cleans up, so both must know the names.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path


def partial_name(path: Path, extension: str = "") -> Path:
    """A name beside ``path``, hidden and never used before, for what becomes ``path`` when complete."""
    return path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}{extension}")


def remove_partials(path: Path) -> None:
    """Remove every incomplete file or folder that was to become ``path``. What cannot be removed stays."""
    prefix = f".{path.name}.partial-"
    try:
        left = [each for each in path.parent.iterdir() if each.name.startswith(prefix)]
    except OSError:
        return
    for each in left:
        if each.is_dir() and not each.is_symlink():
            _remove(each, partial_name(path))
        else:
            with suppress(OSError):
                each.unlink()


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` even while another thread still writes files into it; what cannot be removed stays."""
    _remove(folder, partial_name(folder))


def _remove(folder: Path, doomed: Path) -> None:
    try:
        # Under its new name no further file can appear in it.
        folder.rename(doomed)
    except OSError:
        doomed = folder
    shutil.rmtree(doomed, ignore_errors=True)
