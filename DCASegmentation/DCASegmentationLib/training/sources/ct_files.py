"""CTs from files, with or without label maps."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from ...bundle.metadata import TrainingData
from ...errors import UserError
from ...imaging.ct_check import check_ct
from ...imaging.geometry import lay_over
from ...imaging.reading import read_ct, read_labels
from ...imaging.voxels import left_out, told_left_out
from ..cases import Case, load_case, prepare_case, save_case
from ..datalist import Entry
from ..options import GridOptions
from .source import Progress, cache_folder

_log = logging.getLogger(__name__)

_HIGHEST = 65535

# Part of a prepared case's name: 2 keeps labels above 255, which wrapped around before.
_PREPARATION = 2


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
        names = self.names
        for index, file in enumerate(self.files):
            path = folder / f"{_digest(file, labelled)}.npz"
            if not path.exists():
                save_case(_prepare(file, grid, labelled, names[index], unnamed), path)
            cases.append(replace(load_case(path), name=names[index]))
            if progress is not None:
                progress((index + 1) / len(self.files), f"CT {index + 1} of {len(self.files)}")
        for note in told_left_out(unnamed):
            _log.warning("%s: %s", self.name, note)
        return cases

    @property
    def names(self) -> list[str]:
        """A name for each CT: that of its file, with as many of its folders as tell it from the others."""
        return _names([Path(file.image) for file in self.files])

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


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of ``paths`` that differ from each other, as text with slashes."""
    length = 1
    while True:
        names = ["/".join(path.parts[-length:]) for path in paths]
        # Of one CT that is listed twice no ending differs.
        if len(set(names)) == len(set(paths)) or length >= max(len(path.parts) for path in paths):
            return names
        length += 1


def _prepare(file: CTFile, grid: GridOptions, labelled: bool, name: str, unnamed: list[dict[int, int]]) -> Case:
    ct = read_ct(Path(file.image))
    check_ct(ct)
    if not labelled or file.labels is None:
        return prepare_case(name, ct, None, grid)
    labels = read_labels(Path(file.labels))
    lay_over(labels, Path(file.labels).name, ct, Path(file.image).name)
    if file.ids:
        unnamed.append(left_out(labels, file.ids))
        labels = _renamed(labels, file.ids)
    return prepare_case(name, ct, labels, grid, file.unknown)


def _renamed(labels: sitk.Image, ids: Mapping[int, int]) -> sitk.Image:
    theirs = sitk.GetArrayFromImage(labels)
    wrong = [label for label in ids.values() if not 0 <= label <= _HIGHEST]
    if wrong:
        raise UserError(f"A label map cannot be renamed to label {wrong[0]}.", f"Labels are 0 to {_HIGHEST}.")
    # Unsigned 16 bits are the most that a label map has: numbers beyond are in none.
    table = np.zeros(_HIGHEST + 1, np.uint16)
    for number, label in ids.items():
        if 0 <= number <= _HIGHEST:
            table[number] = label
    renamed = sitk.GetImageFromArray(table[theirs])
    renamed.CopyInformation(labels)
    return renamed


def _digest(file: CTFile, labelled: bool) -> str:
    """A name for the prepared case that changes when the files, or what is made of them, change."""
    paths = [file.image] + ([file.labels] if labelled and file.labels else [])
    states = [(str(Path(path).resolve()), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    made_of = json.dumps([_PREPARATION, states, sorted(file.ids.items()), list(file.unknown)])
    return f"ct_{hashlib.sha256(made_of.encode()).hexdigest()[:20]}"
