"""CTs from files, with or without label maps."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from ...bundle.metadata import TrainingData
from ...imaging.ct_check import check_ct
from ...imaging.geometry import lay_over
from ...imaging.reading import read_ct, read_labels
from ...imaging.voxels import left_out, told_left_out
from ..cases import Case, load_case, prepare_case, save_case
from ..datalist import Entry
from ..options import GridOptions
from .source import Progress, cache_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CTFile:
    """One CT and its label map, if it has one.

    ``ids`` renames the labels of a map in other numbers: theirs to ours, 0 for what is background here; a number it
    does not name is background too. Empty leaves them as they are. ``unknown`` are the labels (ours) that the map does
    not tell of.
    """

    image: str
    labels: str | None = None
    ids: Mapping[int, int] = field(default_factory=dict)
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True)
class CTFiles:
    """CTs under one ``name`` and ``licence``; ``origin`` says where they are from."""

    kind: ClassVar[str] = "ct_files"

    name: str
    licence: str
    origin: str
    files: tuple[CTFile, ...]

    def __post_init__(self) -> None:
        # From JSON come dictionaries with lists and text for numbers.
        made = tuple(file if isinstance(file, CTFile) else _file_from_json(file) for file in self.files)
        object.__setattr__(self, "files", made)

    def cases(self, cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None = None) -> list[Case]:
        """See ``Source``. Raises ImageError for a file that cannot be used, or a label map on another grid."""
        folder = cache_folder(cache, grid)
        cases: list[Case] = []
        unnamed: list[dict[int, int]] = []
        for index, file in enumerate(self.files):
            path = folder / f"{_digest(file, labelled)}.npz"
            if not path.exists():
                save_case(_prepare(file, grid, labelled, unnamed), path)
            cases.append(load_case(path))
            if progress is not None:
                progress((index + 1) / len(self.files), f"CT {index + 1} of {len(self.files)}")
        for note in told_left_out(unnamed):
            _log.warning("%s: %s", self.name, note)
        return cases

    def entries(self) -> list[Entry]:
        """Those with a label map, as entries of a list."""
        return [
            Entry(Path(file.image), Path(file.labels), file.unknown, dict(file.ids))
            for file in self.files
            if file.labels
        ]

    def describe(self, labelled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``."""
        count = len(self.files)
        return (TrainingData(self.name, count if labelled else 0, 0 if labelled else count, self.licence, self.origin),)

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return asdict(self)


def _file_from_json(data: Mapping[str, Any]) -> CTFile:
    ids = {int(theirs): int(ours) for theirs, ours in data.get("ids", {}).items()}
    return CTFile(data["image"], data.get("labels"), ids, tuple(data.get("unknown", ())))


def _prepare(file: CTFile, grid: GridOptions, labelled: bool, unnamed: list[dict[int, int]]) -> Case:
    ct = read_ct(Path(file.image))
    check_ct(ct)
    if not labelled or file.labels is None:
        return prepare_case(Path(file.image).name, ct, None, grid)
    labels = read_labels(Path(file.labels))
    lay_over(labels, Path(file.labels).name, ct, Path(file.image).name)
    if file.ids:
        unnamed.append(left_out(labels, file.ids))
        labels = _renamed(labels, file.ids)
    return prepare_case(Path(file.image).name, ct, labels, grid, file.unknown)


def _renamed(labels: sitk.Image, ids: Mapping[int, int]) -> sitk.Image:
    theirs = sitk.GetArrayFromImage(labels)
    table = np.zeros(int(max(theirs.max(), *ids)) + 1, np.uint8)
    for number, label in ids.items():
        table[number] = label
    renamed = sitk.GetImageFromArray(table[theirs])
    renamed.CopyInformation(labels)
    return renamed


def _digest(file: CTFile, labelled: bool) -> str:
    """A name for the prepared case that changes when the files, or what is made of them, change."""
    paths = [file.image] + ([file.labels] if labelled and file.labels else [])
    states = [(str(Path(path).resolve()), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    made_of = json.dumps([states, sorted(file.ids.items()), list(file.unknown)])
    return f"ct_{hashlib.sha256(made_of.encode()).hexdigest()[:20]}"
