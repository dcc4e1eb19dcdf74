"""Checkpoints of a run: whole on disk or not at all, and enough to go on exactly where the run stopped."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError, UserError
from ..partials import partial_name, remove_partials

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``; the file there before is kept beside it as ``*.previous``.

    There is a whole checkpoint at ``path`` at every moment, however the process ends, once there was one. Raises
    OutputError if the disk is full or the folder cannot be written; what was there stays.
    """
    part = partial_name(path)
    try:
        with part.open("xb") as stream:
            torch.save({"format": FORMAT, **state}, stream)
            stream.flush()
            # Network and quota file systems report a full disk only now.
            os.fsync(stream.fileno())
        if path.exists():
            _keep(path)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"The checkpoint {path} cannot be written ({error}).", "Make room or choose another folder, then resume."
        ) from error
    finally:
        # Gone after a rename; there after an error, or when Ctrl+C is pressed twice.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote the checkpoint ``path`` have left."""
    remove_partials(path)
    remove_partials(previous(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in ``path``, or in the checkpoint before it where ``path`` was cut off.

    Raises UserError if neither can be read, or if a newer version wrote it.
    """
    failures: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            failures.append(f"{candidate.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if state.get("format") != FORMAT:
            raise UserError(
                f"{candidate} is a checkpoint of format {state.get('format')}, this version reads {FORMAT}.",
                "Resume it with the version that wrote it.",
            )
        return state
    if failures:
        raise UserError(f"No checkpoint can be read ({'; '.join(failures)}).", "Start the run again in a new folder.")
    raise UserError(f"There is no checkpoint at {path}.", "Name the folder of a run, or start one.")


def previous(path: Path) -> Path:
    """Where ``save_checkpoint`` keeps the checkpoint before the last."""
    return path.with_name(path.name + ".previous")


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint at ``path``, or the one before it."""
    return path.exists() or previous(path).exists()


def _keep(path: Path) -> None:
    """Make the file ``path`` the previous one, without a moment at which there is none at ``path``."""
    link = partial_name(previous(path))
    try:
        os.link(path, link)
    except OSError:
        # The file system knows no hard links.
        path.replace(previous(path))
        return
    try:
        link.replace(previous(path))
    finally:
        with suppress(OSError):
            # Two names of one file stay two where they were the same already.
            link.unlink(missing_ok=True)
