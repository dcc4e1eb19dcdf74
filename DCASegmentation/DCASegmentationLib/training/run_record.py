"""What a run was: its cohort, options, groups of organs and beginning, beside its checkpoints as ``run.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bundle.loading import Bundle
from ..bundle.metadata import DEFAULT_OVERLAP, TrainingData
from ..errors import UserError
from ..imaging.writing import write_json
from ..json_reading import read_json
from ..method.partition import Partition
from ..organs import VOCABULARIES, Vocabulary
from .cohort import Cohort
from .options import TrainingOptions

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
    cohort: Cohort
    partition: Partition
    initial: InitialModel | None = None
    # Steps between validations and checkpoints: which weights validate best depends on them.
    validate_every: int = 500
    save_every: int = 100

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, which knows no infinity: no limit of the gradient becomes null."""
        limit = self.options.gradient_limit
        return {
            "vocabulary": self.vocabulary.name,
            "cohort": self.cohort.to_json(),
            "partition": self.partition.to_json(),
            "options": {**self.options.to_json(), "gradient_limit": limit if math.isfinite(limit) else None},
            "initial": None if self.initial is None else asdict(self.initial),
            "validate_every": self.validate_every,
            "save_every": self.save_every,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """The record ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        limit = data["options"]["gradient_limit"]
        return cls(
            vocabulary=VOCABULARIES[data["vocabulary"]],
            options=TrainingOptions.from_json(
                {**data["options"], "gradient_limit": math.inf if limit is None else limit}
            ),
            cohort=Cohort.from_json(data["cohort"]),
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
