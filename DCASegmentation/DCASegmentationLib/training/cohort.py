"""Whom a run trains on and whom it validates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle.metadata import TrainingData
from .cases import Case
from .options import GridOptions
from .sources.ct_files import CTFiles
from .sources.painted import Painted, RecipeStream
from .sources.phantoms import LABELLED_SEEDS, UNLABELLED_SEEDS, VALIDATION_SEEDS, Phantoms
from .sources.source import Progress, Source

_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Phantoms, Painted, RecipeStream, CTFiles)}


@dataclass(frozen=True)
class Cohort:
    """Sources of labelled and unlabelled training cases and of labelled cases to validate on.

    Raises ValueError for more than one stream of recipes, or one that is not among the labelled sources.
    """

    labelled: tuple[Source, ...]
    unlabelled: tuple[Source, ...] = ()
    validation: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        sources = (*self.labelled, *self.unlabelled, *self.validation)
        streams = sum(isinstance(source, RecipeStream) for source in sources)
        if streams > 1 or (streams and self.stream is None):
            raise ValueError("a cohort has one stream of recipes at most, among its labelled sources")

    @property
    def stream(self) -> RecipeStream | None:
        """The stream of synthetic CTs that are made while training, if there is one."""
        return next((source for source in self.labelled if isinstance(source, RecipeStream)), None)

    @classmethod
    def of_phantoms(cls, labelled: int, unlabelled: int, validation: int) -> Cohort:
        """So many synthetic people, nobody in two groups."""
        return cls(
            _phantoms(LABELLED_SEEDS, labelled),
            _phantoms(UNLABELLED_SEEDS, unlabelled),
            _phantoms(VALIDATION_SEEDS, validation),
        )

    def joined(self, other: Cohort) -> Cohort:
        """The cases of both cohorts."""
        return Cohort(
            self.labelled + other.labelled, self.unlabelled + other.unlabelled, self.validation + other.validation
        )

    @property
    def synthetic(self) -> bool:
        """Whether any of its cases is synthetic."""
        sources = (*self.labelled, *self.unlabelled, *self.validation)
        return any(isinstance(source, Phantoms | Painted | RecipeStream) for source in sources)

    def fully_labelled(self) -> Cohort:
        """The unlabelled cases with their labels, too: what a fully supervised network learns from.

        Only sources that have labels for them (phantoms, lists that name them) can give them.
        """
        return Cohort((*self.labelled, *self.unlabelled), (), self.validation)

    def cases(
        self, cache: Path, grid: GridOptions, progress: Progress | None = None
    ) -> tuple[list[Case], list[Case], list[Case]]:
        """The cases of the three groups on the model grid, made in ``cache`` where they are not there yet."""
        return (
            _cases(self.labelled, cache, grid, True, progress),
            _cases(self.unlabelled, cache, grid, False, progress),
            _cases(self.validation, cache, grid, True, progress),
        )

    @property
    def training_data(self) -> tuple[TrainingData, ...]:
        """What a model trained on this cohort must name; the same source counts its cases of both groups."""
        told: dict[tuple[str, str, str], TrainingData] = {}
        groups = ((self.labelled, True), (self.unlabelled, False))
        for one in (data for group, labelled in groups for source in group for data in source.describe(labelled)):
            key = (one.name, one.licence, one.source)
            before = told.get(key, replace(one, labelled=0, unlabelled=0))
            told[key] = replace(
                one, labelled=before.labelled + one.labelled, unlabelled=before.unlabelled + one.unlabelled
            )
        return tuple(told.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data for the run's record."""
        groups = {"labelled": self.labelled, "unlabelled": self.unlabelled, "validation": self.validation}
        return {
            name: [{"kind": source.kind, **source.to_json()} for source in sources] for name, sources in groups.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cohort:
        """The cohort ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        return cls(**{name: tuple(_source(source) for source in data[name]) for name in data})


def _phantoms(first_seed: int, count: int) -> tuple[Phantoms, ...]:
    return (Phantoms(first_seed, count),) if count else ()


def _cases(
    sources: Sequence[Source], cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None
) -> list[Case]:
    return [case for source in sources for case in source.cases(cache, grid, labelled, progress)]


def _source(data: dict[str, Any]) -> Source:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = str(fields.pop("kind"))
    made: Source = _KINDS[kind](**fields)
    return made
