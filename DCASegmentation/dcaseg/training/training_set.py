"""The training set: sources of training and validation cases, and the division of their organs into groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..json_io import DataError, load
from ..method.log_gap import Partition, PartitionMode, partition
from ..models.metadata import TrainingData
from ..option_fields import make_option_metadata, option
from ..organs import Vocabulary
from ..types import ProgressCallback
from .cases import Case, Source
from .datalist import Datalist, Entry
from .options import GridOptions
from .sources import (
    LABELED_SEEDS,
    UNLABELED_SEEDS,
    VALIDATION_SEEDS,
    CTFile,
    CTFiles,
    Phantoms,
    RecipeStream,
    SynthesizedCTs,
)


class LabeledVolume(Protocol):
    """A labeled case, or a label map that synthetic CTs are made from."""

    @property
    def name(self) -> str:
        """The name of the case or label map."""
        ...

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The labels that the label map does not include."""
        ...

    def count_voxels(self, n_labels: int) -> np.ndarray:
        """The number of voxels of each label 0 to ``n_labels`` on the model grid, int64."""
        ...


def divide(labeled: Sequence[LabeledVolume], vocabulary: Vocabulary, mode: PartitionMode) -> Partition:
    """Divide the organs of ``vocabulary`` into head, medium and tail by their voxels in the labeled cases.

    The voxels of an organ are extrapolated from the cases in which it is annotated to all cases. See
    ``method.log_gap.partition`` for ``mode``. Raises UserError if no case has an organ.
    """
    counts = sum((case.count_voxels(len(vocabulary)) for case in labeled), np.zeros(len(vocabulary) + 1, np.int64))
    sizes: dict[int, int] = {}
    for organ in vocabulary:
        annotated = sum(organ.label not in case.unannotated for case in labeled)
        sizes[organ.label] = round(int(counts[organ.label]) * len(labeled) / annotated) if annotated else 0
    names = {organ.label: organ.name for organ in vocabulary}
    return partition(sizes, mode, no_second_gap="guarded", names=names)


_SOURCE_CLASSES: dict[str, type[Any]] = {cls.kind: cls for cls in (Phantoms, SynthesizedCTs, RecipeStream, CTFiles)}


@dataclass(frozen=True)
class TrainingSet:
    """Sources of labeled and unlabeled training cases, and of labeled validation cases.

    Raises ValueError if there is more than one ``RecipeStream``, or one that is not among the labeled sources.
    """

    labeled: tuple[Source, ...]
    unlabeled: tuple[Source, ...] = ()
    validation: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        sources = (*self.labeled, *self.unlabeled, *self.validation)
        streams = sum(isinstance(source, RecipeStream) for source in sources)
        if streams > 1 or (streams and self.stream is None):
            raise ValueError("a training set has at most one recipe stream, among its labeled sources")

    @property
    def stream(self) -> RecipeStream | None:
        """The source of synthetic CTs that are created during training, if there is one."""
        return next((source for source in self.labeled if isinstance(source, RecipeStream)), None)

    @classmethod
    def from_phantoms(cls, labeled: int, unlabeled: int, validation: int) -> TrainingSet:
        """These numbers of phantoms (synthetic people); no phantom is in two groups."""
        return cls(
            _make_phantoms(LABELED_SEEDS, labeled),
            _make_phantoms(UNLABELED_SEEDS, unlabeled),
            _make_phantoms(VALIDATION_SEEDS, validation),
        )

    def merge(self, other: TrainingSet) -> TrainingSet:
        """The cases of both training sets."""
        return TrainingSet(
            self.labeled + other.labeled, self.unlabeled + other.unlabeled, self.validation + other.validation
        )

    @property
    def synthetic(self) -> bool:
        """Whether any case is synthetic."""
        sources = (*self.labeled, *self.unlabeled, *self.validation)
        return any(isinstance(source, Phantoms | SynthesizedCTs | RecipeStream) for source in sources)

    def to_fully_labeled(self) -> TrainingSet:
        """The training set of a fully supervised network: the unlabeled cases are used with their labels.

        Only sources that have these labels (phantoms, data lists with a ``label`` for unlabeled cases) provide them.
        """
        return TrainingSet((*self.labeled, *self.unlabeled), (), self.validation)

    def cases(
        self, cache: Path, grid: GridOptions, progress: ProgressCallback | None = None
    ) -> tuple[list[Case], list[Case], list[Case]]:
        """The labeled, unlabeled and validation cases on the model grid; missing ones are created in ``cache``."""
        return (
            _load_cases(self.labeled, cache, grid, True, progress),
            _load_cases(self.unlabeled, cache, grid, False, progress),
            _load_cases(self.validation, cache, grid, True, progress),
        )

    @property
    def training_data(self) -> tuple[TrainingData, ...]:
        """The entries for the metadata of a trained model, one per source, with its labeled and unlabeled cases."""
        entries: dict[tuple[str, str, str], TrainingData] = {}
        groups = ((self.labeled, True), (self.unlabeled, False))
        for data in (data for group, labeled in groups for source in group for data in source.describe(labeled)):
            key = (data.name, data.licence, data.source)
            before = entries.get(key, replace(data, labeled=0, unlabeled=0))
            entries[key] = replace(
                data, labeled=before.labeled + data.labeled, unlabeled=before.unlabeled + data.unlabeled
            )
        return tuple(entries.values())

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data for the run's record."""
        groups = {"labelled": self.labeled, "unlabelled": self.unlabeled, "validation": self.validation}
        return {
            name: [{"kind": source.kind, **source.to_json()} for source in sources] for name, sources in groups.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingSet:
        """Read the output of ``to_json``. Raises DataError, which is a ValueError, for other data."""
        stored = load(_StoredSources, data)
        groups = {name: tuple(_parse_source(each, name) for each in sources) for name, sources in vars(stored).items()}
        return cls(**groups)


@dataclass(frozen=True)
class _StoredSources:
    labeled: tuple[Mapping[str, Any], ...] = field(metadata=make_option_metadata(key="labelled"))
    unlabeled: tuple[Mapping[str, Any], ...] = option((), key="unlabelled")
    validation: tuple[Mapping[str, Any], ...] = ()


def _make_phantoms(first_seed: int, count: int) -> tuple[Phantoms, ...]:
    return (Phantoms(first_seed, count),) if count else ()


def _load_cases(
    sources: Sequence[Source], cache: Path, grid: GridOptions, labeled: bool, progress: ProgressCallback | None
) -> list[Case]:
    return [case for source in sources for case in source.cases(cache, grid, labeled, progress)]


def _parse_source(stored: Mapping[str, Any], group: str) -> Source:
    kind = stored.get("kind")
    if kind not in _SOURCE_CLASSES:
        raise DataError(f"{group}.kind", f"is '{str(kind)[:40]}', not one of {', '.join(_SOURCE_CLASSES)}")
    source: Source = load(_SOURCE_CLASSES[kind], {key: value for key, value in stored.items() if key != "kind"}, group)
    return source


def make_training_set(datalist: Datalist) -> TrainingSet:
    """The training, unlabeled and validation cases of a data list. Its test cases are not included."""
    return TrainingSet(
        _make_sources(datalist, datalist.training),
        _make_sources(datalist, datalist.unlabeled),
        _make_sources(datalist, datalist.validation),
    )


def make_test_sources(datalist: Datalist) -> tuple[CTFiles, ...]:
    """The labeled test cases of a data list."""
    return _make_sources(datalist, [entry for entry in datalist.test if entry.label is not None])


def _make_sources(datalist: Datalist, entries: Sequence[Entry]) -> tuple[CTFiles, ...]:
    files = tuple(
        CTFile(str(entry.image), None if entry.label is None else str(entry.label), entry.label_map, entry.unannotated)
        for entry in entries
    )
    return (CTFiles(datalist.name, datalist.licence, datalist.source, files),) if files else ()
