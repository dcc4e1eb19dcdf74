"""The cases a run trains on and validates on, and the division of their organs into groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..method.log_gap import Partition, PartitionMode, partition
from ..models.metadata import TrainingData
from ..organs import Vocabulary
from ..types import ProgressCallback
from .cases import Case, Source
from .datalist import Datalist, Entry
from .options import GridOptions
from .sources import (
    LABELLED_SEEDS,
    UNLABELLED_SEEDS,
    VALIDATION_SEEDS,
    CTFile,
    CTFiles,
    Painted,
    Phantoms,
    RecipeStream,
)


class Labelled(Protocol):
    """A labeled case, or an anatomy that synthetic CTs are made from: ``unannotated`` are labels that it leaves out."""

    @property
    def name(self) -> str: ...

    @property
    def unannotated(self) -> tuple[int, ...]: ...

    def voxel_counts(self, n_labels: int) -> np.ndarray:
        """Voxels of each label 0 to ``n_labels`` on the model grid, int64."""
        ...


def divide(labelled: Sequence[Labelled], vocabulary: Vocabulary, mode: PartitionMode) -> Partition:
    """The groups by mean voxels of each organ over the cases that tell of it, times the number of cases."""
    counts = sum((case.voxel_counts(len(vocabulary)) for case in labelled), np.zeros(len(vocabulary) + 1, np.int64))
    sizes: dict[int, int] = {}
    for organ in vocabulary:
        telling = sum(organ.label not in case.unannotated for case in labelled)
        sizes[organ.label] = round(int(counts[organ.label]) * len(labelled) / telling) if telling else 0
    names = {organ.label: organ.name for organ in vocabulary}
    return partition(sizes, mode, no_second_gap="guarded", names=names)


_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Phantoms, Painted, RecipeStream, CTFiles)}


@dataclass(frozen=True)
class TrainingSet:
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
    def of_phantoms(cls, labelled: int, unlabelled: int, validation: int) -> TrainingSet:
        """So many synthetic people, nobody in two groups."""
        return cls(
            _phantoms(LABELLED_SEEDS, labelled),
            _phantoms(UNLABELLED_SEEDS, unlabelled),
            _phantoms(VALIDATION_SEEDS, validation),
        )

    def joined(self, other: TrainingSet) -> TrainingSet:
        """The cases of both cohorts."""
        return TrainingSet(
            self.labelled + other.labelled, self.unlabelled + other.unlabelled, self.validation + other.validation
        )

    @property
    def synthetic(self) -> bool:
        """Whether any of its cases is synthetic."""
        sources = (*self.labelled, *self.unlabelled, *self.validation)
        return any(isinstance(source, Phantoms | Painted | RecipeStream) for source in sources)

    def fully_labelled(self) -> TrainingSet:
        """The unlabelled cases with their labels, too: what a fully supervised network learns from.

        Only sources that have labels for them (phantoms, lists that name them) can give them.
        """
        return TrainingSet((*self.labelled, *self.unlabelled), (), self.validation)

    def cases(
        self, cache: Path, grid: GridOptions, progress: ProgressCallback | None = None
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
    def from_json(cls, data: dict[str, Any]) -> TrainingSet:
        """The cohort ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        return cls(**{name: tuple(_source(source) for source in data[name]) for name in data})


def _phantoms(first_seed: int, count: int) -> tuple[Phantoms, ...]:
    return (Phantoms(first_seed, count),) if count else ()


def _cases(
    sources: Sequence[Source], cache: Path, grid: GridOptions, labelled: bool, progress: ProgressCallback | None
) -> list[Case]:
    return [case for source in sources for case in source.cases(cache, grid, labelled, progress)]


def _source(data: dict[str, Any]) -> Source:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = str(fields.pop("kind"))
    made: Source = _KINDS[kind](**fields)
    return made


def training_set_of(datalist: Datalist) -> TrainingSet:
    """The list's training, unlabelled and validation cases; its test cases are for nobody's training."""
    return TrainingSet(
        _sources(datalist, datalist.training),
        _sources(datalist, datalist.unlabelled),
        _sources(datalist, datalist.validation),
    )


def sources_of_test(datalist: Datalist) -> tuple[CTFiles, ...]:
    """The list's labelled test cases."""
    return _sources(datalist, [entry for entry in datalist.test if entry.label is not None])


def _sources(datalist: Datalist, entries: Sequence[Entry]) -> tuple[CTFiles, ...]:
    files = tuple(
        CTFile(str(entry.image), None if entry.label is None else str(entry.label), entry.label_map, entry.unannotated)
        for entry in entries
    )
    return (CTFiles(datalist.name, datalist.licence, datalist.source, files),) if files else ()
