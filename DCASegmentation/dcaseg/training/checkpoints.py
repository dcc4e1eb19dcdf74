"""Checkpoints, from which a run continues exactly where it stopped, and the record that describes a run."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError, UserError, get_reason, require_memory
from ..imaging.writers import write_json
from ..json_io import DataError, dump, load, read_json
from ..method.log_gap import Partition
from ..models.bundle import Bundle
from ..models.metadata import DEFAULT_OVERLAP, TrainingData
from ..option_fields import option
from ..organs import VOCABULARIES, Vocabulary
from ..temp_paths import make_partial_path, remove_partials
from .options import TrainingOptions
from .training_set import TrainingSet

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``; the file that was there is kept as ``<path>.previous``.

    Once there is a checkpoint at ``path``, there is always a complete one, however the process ends. Raises OutputError
    if the file cannot be written; the existing files then stay as they are.
    """
    part = make_partial_path(path)
    try:
        with part.open("xb") as stream:
            torch.save({"format": FORMAT, **state}, stream)
            stream.flush()
            # Network file systems and file systems with quotas may report a full disk only here.
            os.fsync(stream.fileno())
        if path.exists():
            _keep(path)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        require_memory(error)
        raise OutputError(
            f"The checkpoint {path} cannot be written ({get_reason(error)}).",
            "Free some disk space or choose another folder, then resume.",
        ) from error
    finally:
        # The file still exists after an error, or if Ctrl+C was pressed twice.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of processes that were killed while writing the checkpoint ``path``."""
    remove_partials(path)
    remove_partials(get_previous_path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state in ``path`` or, if that file is damaged or missing, in the previous checkpoint.

    Raises UserError if neither can be read, or if the file has another format.
    """
    failures: list[str] = []
    for candidate in (path, get_previous_path(path)):
        if not candidate.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            # The file is not damaged; the previous one would lose a part of the training.
            require_memory(error)
            failures.append(f"{candidate.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if state.get("format") != FORMAT:
            raise UserError(
                f"{candidate} is a checkpoint of format {state.get('format')}, but this version reads format {FORMAT}.",
                "Resume the run with the version that wrote it.",
            )
        return state
    if failures:
        raise UserError(f"No checkpoint can be read ({'; '.join(failures)}).", "Start the run again in a new folder.")
    raise UserError(f"There is no checkpoint at {path}.", "Specify the folder of a run, or start a new run.")


def get_previous_path(path: Path) -> Path:
    """The file in which ``save_checkpoint`` keeps the previous checkpoint."""
    return path.with_name(path.name + ".previous")


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint at ``path``, or a previous one."""
    return path.exists() or get_previous_path(path).exists()


def _keep(path: Path) -> None:
    """Make the file ``path`` also the previous checkpoint, so that ``path`` exists at every moment."""
    link = make_partial_path(get_previous_path(path))
    try:
        os.link(path, link)
    except OSError:
        # The file system does not support hard links.
        path.replace(get_previous_path(path))
        return
    try:
        link.replace(get_previous_path(path))
    finally:
        with suppress(OSError):
            # Renaming a hard link to another link of the same file does nothing, so the name may still exist.
            link.unlink(missing_ok=True)


RECORD = "run.json"


@dataclass(frozen=True)
class InitialModel:
    """The bundle that a run started from: name and weights' SHA-256, training data, and sliding-window overlap."""

    name: str
    sha256: str
    training_data: tuple[TrainingData, ...]
    overlap: float = DEFAULT_OVERLAP

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> InitialModel:
        """The description of ``bundle``."""
        metadata = bundle.metadata
        return cls(metadata.name, metadata.weights.sha256, metadata.training_data, metadata.overlap)


@dataclass(frozen=True)
class RunRecord:
    """The record of a run (``run.json``): everything that the metadata of a bundle needs to know about it."""

    vocabulary: Vocabulary
    options: TrainingOptions
    cohort: TrainingSet
    partition: Partition
    initial: InitialModel | None = None
    # In steps. They affect which weights have the best validation score.
    validate_every: int = 500
    save_every: int = 100

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "vocabulary": self.vocabulary.name,
            "cohort": self.cohort.to_json(),
            "partition": self.partition.to_json(),
            "options": self.options.to_json(),
            "initial": None if self.initial is None else dump(self.initial),
            "validate_every": self.validate_every,
            "save_every": self.save_every,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """Read the output of ``to_json``. Raises DataError, which is a ValueError, for other data."""
        stored = load(_StoredRecord, data)
        if stored.vocabulary not in VOCABULARIES:
            raise DataError("vocabulary", f"is '{stored.vocabulary[:40]}', not one of {', '.join(VOCABULARIES)}")
        return cls(**{**vars(stored), "vocabulary": VOCABULARIES[stored.vocabulary]})


@dataclass(frozen=True)
class _StoredRecord:
    """A record as it is stored, with the name of the vocabulary."""

    vocabulary: str
    options: TrainingOptions
    cohort: TrainingSet
    partition: Partition
    initial: InitialModel | None
    # Records of older versions do not have these two; those runs used the defaults.
    validate_every: int = option(RunRecord.validate_every, minimum=1)
    save_every: int = option(RunRecord.save_every, minimum=1)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``record`` into the run's ``folder``, which is created if necessary. Raises OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record.to_json(), folder / RECORD)


def read_record(folder: Path) -> RunRecord:
    """Read the record in the run's ``folder``. Raises UserError if it is missing or damaged."""
    path = folder / RECORD
    try:
        return RunRecord.from_json(read_json(path))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not the folder of a training run: it has no {RECORD}.", "Specify the folder of a run."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({get_reason(error)}).", "Train in a new folder.") from None
