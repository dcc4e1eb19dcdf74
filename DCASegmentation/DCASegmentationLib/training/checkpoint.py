"""Checkpoints of a run: whole on disk or not at all, and enough to go on exactly where the run stopped."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import OutputError, UserError

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``; the file there before is kept beside it as ``*.previous``.

    Raises OutputError if the disk is full or the folder cannot be written; what was there stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        torch.save({"format": FORMAT, **state}, part)
        if path.exists():
            path.replace(previous(path))
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"The checkpoint {path} cannot be written ({error}).", "Make room or choose another folder, then resume."
        ) from error


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


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The generator's state as plain data, which ``torch.load`` takes with ``weights_only``."""
    return dict(generator.bit_generator.state)


def restore_generator(state: dict[str, Any]) -> np.random.Generator:
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    return generator
