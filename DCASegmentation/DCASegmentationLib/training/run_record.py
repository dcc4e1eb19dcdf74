"""What a run was: its people, options and groups of organs, beside its checkpoints as ``run.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..imaging.writing import write_json
from ..method.partition import Partition
from ..organs import VOCABULARIES, Vocabulary
from .cases import Case
from .options import GridOptions, TrainingOptions
from .phantom_cohort import LABELLED_SEEDS, UNLABELLED_SEEDS, VALIDATION_SEEDS, Progress, phantom_cases

RECORD = "run.json"


@dataclass(frozen=True)
class Cohort:
    """How many phantoms were trained on, with and without labels, and validated on."""

    labelled: int
    unlabelled: int
    validation: int

    def cases(
        self, folder: Path, grid: GridOptions, progress: Progress | None = None
    ) -> tuple[list[Case], list[Case], list[Case]]:
        """The cases of the three groups on the model grid, made in ``folder`` where they are not there yet."""
        return (
            phantom_cases(folder, "labelled", LABELLED_SEEDS, self.labelled, grid, True, progress),
            phantom_cases(folder, "unlabelled", UNLABELLED_SEEDS, self.unlabelled, grid, False, progress),
            phantom_cases(folder, "validation", VALIDATION_SEEDS, self.validation, grid, True, progress),
        )


@dataclass(frozen=True)
class RunRecord:
    """What a bundle's metadata must tell of the run it comes from."""

    vocabulary: Vocabulary
    options: TrainingOptions
    cohort: Cohort
    partition: Partition

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, which knows no infinity: no limit of the gradient becomes null."""
        limit = self.options.gradient_limit
        return {
            "vocabulary": self.vocabulary.name,
            "cohort": asdict(self.cohort),
            "partition": self.partition.to_json(),
            "options": {**self.options.to_json(), "gradient_limit": limit if math.isfinite(limit) else None},
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
            cohort=Cohort(**data["cohort"]),
            partition=Partition.from_json(data["partition"]),
        )


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``record`` into the run's ``folder``, which is made if it is not there. Raises OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record.to_json(), folder / RECORD)


def read_record(folder: Path) -> RunRecord:
    """The record in the run's ``folder``. Raises UserError where there is none, or a damaged one."""
    path = folder / RECORD
    try:
        return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run of dca train (no {RECORD}).", "Name the folder of a run.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Train in a new folder.") from None
