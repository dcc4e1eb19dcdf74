"""Checkpoints of a run, and the record of what it was: enough to continue exactly where it stopped."""

from __future__ import annotations

import math
import os
import pickle
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError, UserError
from ..imaging.writers import write_json
from ..json_io import read_json
from ..method.log_gap import Partition
from ..models.bundle import Bundle
from ..models.metadata import DEFAULT_OVERLAP, TrainingData
from ..organs import VOCABULARIES, Vocabulary
from ..temp_paths import partial_name, remove_partials
from .options import TrainingOptions
from .training_set import TrainingSet

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


RECORD = "run.json"


@dataclass(frozen=True)
class InitialModel:
    """The bundle whose weights a run started from, what that had been trained on, and the overlap of its windows."""

    name: str
    sha256: str
    training_data: tuple[TrainingData, ...]
    overlap: float = DEFAULT_OVERLAP

    @classmethod
    def of(cls, bundle: Bundle) -> InitialModel:
        metadata = bundle.metadata
        return cls(metadata.name, metadata.weights.sha256, metadata.training_data, metadata.overlap)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InitialModel:
        """The model ``asdict`` gave."""
        training_data = tuple(TrainingData(**one) for one in data["training_data"])
        return cls(data["name"], data["sha256"], training_data, data.get("overlap", DEFAULT_OVERLAP))


@dataclass(frozen=True)
class RunRecord:
    """What a bundle's metadata must tell of the run it comes from."""

    vocabulary: Vocabulary
    options: TrainingOptions
    cohort: TrainingSet
    partition: Partition
    initial: InitialModel | None = None
    # Steps between validations and checkpoints: which weights validate best depends on them.
    validate_every: int = 500
    save_every: int = 100

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, which knows no infinity: no limit of the gradient becomes null."""
        limit = self.options.grad_clip_norm
        return {
            "vocabulary": self.vocabulary.name,
            "cohort": self.cohort.to_json(),
            "partition": self.partition.to_json(),
            "options": {**self.options.to_json(), "grad_clip_norm": limit if math.isfinite(limit) else None},
            "initial": None if self.initial is None else asdict(self.initial),
            "validate_every": self.validate_every,
            "save_every": self.save_every,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """The record ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        return cls(
            vocabulary=VOCABULARIES[data["vocabulary"]],
            options=TrainingOptions.from_json(data["options"]),
            cohort=TrainingSet.from_json(data["cohort"]),
            partition=Partition.from_json(data["partition"]),
            initial=None if data["initial"] is None else InitialModel.from_json(data["initial"]),
            # Runs from before they were kept have the usual ones.
            validate_every=int(data.get("validate_every", cls.validate_every)),
            save_every=int(data.get("save_every", cls.save_every)),
        )


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``record`` into the run's ``folder``, which is made if it is not there. Raises OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record.to_json(), folder / RECORD)


def read_record(folder: Path) -> RunRecord:
    """The record in the run's ``folder``. Raises UserError where there is none, or a damaged one."""
    path = folder / RECORD
    try:
        return RunRecord.from_json(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run of dca train (no {RECORD}).", "Name the folder of a run.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Train in a new folder.") from None
