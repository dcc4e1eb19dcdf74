"""Data lists: JSON files that list CTs and label maps, in the format of MONAI and the Medical Segmentation Decathlon.

    {"name": "AMOS 5 %", "vocabulary": "AMOS", "licence": "...", "source": "...",
     "labels": {"0": "background", "1": "spleen", ...}, "modality": {"0": "CT"},
     "training":   [{"image": "a.nii.gz", "label": "a_seg.nii.gz", "unannotated": [14, 15], "label_map": {"52": 8}}],
     "unlabelled": [{"image": "b.nii.gz"}],
     "validation": [{"image": "c.nii.gz", "label": "c_seg.nii.gz"}],
     "test":       [{"image": "d.nii.gz", "label": "d_seg.nii.gz"}]}

Paths are absolute or relative to the list's folder. Only the key ``training`` is required.

- ``unannotated``: labels of the vocabulary that the label map does not include. Its background may be these organs.
- ``label_map``: converts the numbers of the label map (left) to labels of the vocabulary (right). Numbers that it does
  not contain become background.
- ``unlabelled`` (or ``unlabeled``): unlabeled cases. The label of such an entry is used only for fully supervised
  training, as a comparison.
- ``test``: entries may be plain paths, as in the Decathlon.

``monai.data.load_decathlon_datalist`` can read these lists too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, get_reason
from ..imaging.file_errors import exists
from ..imaging.writers import write_json
from ..json_io import DataError, load, read_json
from ..option_fields import option
from ..organs import AMOS, VOCABULARIES, Vocabulary

FOLDERS_LIST = "dataset.json"
"""The name of the data list in a folder of cases."""

GROUPS = {"training": "training", "unlabelled": "unlabeled", "validation": "validation", "test": "test"}
"""The groups of a list: the key in the file, and the attribute of ``Datalist``."""
_LABELED = ("training", "validation")


@dataclass(frozen=True)
class Entry:
    """One CT and its label map, if it has one. An empty ``label_map`` means that its numbers are the vocabulary's.

    See the module's docstring for ``unannotated`` and ``label_map``.
    """

    image: Path
    label: Path | None = None
    unannotated: tuple[int, ...] = ()
    label_map: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Datalist:
    """The entries of the four groups of a list. A trained model's metadata include ``name``, ``licence``,
    ``source``."""

    vocabulary: Vocabulary
    training: tuple[Entry, ...]
    unlabeled: tuple[Entry, ...] = ()
    validation: tuple[Entry, ...] = ()
    test: tuple[Entry, ...] = ()
    name: str = "CTs of a folder"
    licence: str = "not stated"
    source: str = "not stated"

    def iter_groups(self) -> Iterator[tuple[str, tuple[Entry, ...]]]:
        """The name and entries of each group."""
        for group, attribute in GROUPS.items():
            yield group, getattr(self, attribute)


def list_of(path: Path) -> Path:
    """The data list's file: ``path``, or ``dataset.json`` in it if ``path`` is a folder."""
    return path / FOLDERS_LIST if path.is_dir() else path


def read_datalist(path: Path) -> Datalist:
    """Read a data list. It does not check whether the listed files exist; ``require_files`` does.

    Raises UserError if the list cannot be read, an entry is malformed, a label is not in the vocabulary, or a CT is
    listed twice.
    """
    path = Path(path)
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"There is no data list {path}.", "Create one with dca dataset.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data list {path} cannot be read ({get_reason(error)}).", "Create it again with dca dataset."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        raise UserError(f"{path} is not a data list: it has no list 'training'.", "Create one with dca dataset.")
    content = _normalize_keys(content, path)
    vocabulary = _get_vocabulary(content, path)
    groups: dict[str, tuple[Entry, ...]] = {}
    for group in GROUPS:
        entries = content.get(group, [])
        if not isinstance(entries, list):
            raise UserError(f"'{group}' in {path} is not a list.", "See dca dataset --help for the format.")
        groups[group] = tuple(
            _parse_entry(data, path, f"{group}[{index}]", vocabulary, group) for index, data in enumerate(entries)
        )
    _require_disjoint(groups, path)
    origin: dict[str, Any] = {key: str(content[key]) for key in ("name", "licence", "source") if content.get(key)}
    return Datalist(
        vocabulary, groups["training"], groups["unlabelled"], groups["validation"], groups["test"], **origin
    )


_SPELLINGS = {"unlabeled": "unlabelled", "license": "licence"}


def _normalize_keys(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """``content`` with the keys of this format. Raises UserError for a list of cases under an unknown key."""
    both = [spelling for spelling, ours in _SPELLINGS.items() if spelling in content and ours in content]
    if both:
        raise UserError(
            f"{path} has the keys '{both[0]}' and '{_SPELLINGS[both[0]]}'.", "Merge them: they mean the same."
        )
    content = {_SPELLINGS.get(key, key): value for key, value in content.items()}
    for key, value in content.items():
        is_cases = isinstance(value, list) and any(isinstance(each, dict) and "image" in each for each in value)
        if is_cases and key not in GROUPS:
            raise UserError(
                f"'{key}' in {path} would not be used: it is not one of {', '.join(GROUPS)}.",
                "Rename it, or remove it from the list.",
            )
    return content


def write_datalist(datalist: Datalist, path: Path) -> None:
    """Write a data list. Paths below its folder become relative, so that the folder can be moved.

    Raises OutputError if the list cannot be written.
    """
    path = Path(path)
    content: dict[str, Any] = {
        "name": datalist.name,
        "licence": datalist.licence,
        "source": datalist.source,
        "vocabulary": datalist.vocabulary.name,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(organ.label): organ.key for organ in datalist.vocabulary}},
        "numTraining": len(datalist.training),
        "numTest": len(datalist.test),
    }
    for group, entries in datalist.iter_groups():
        content[group] = [_to_json(entry, path.absolute().parent) for entry in entries]
    write_json(content, path)


def require_files(datalist: Datalist) -> None:
    """Raise UserError if listed files do not exist."""
    missing = [
        str(file)
        for _, entries in datalist.iter_groups()
        for entry in entries
        for file in (entry.image, entry.label)
        if file is not None and not exists(file)
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"The data list contains files that do not exist: {', '.join(missing[:3])}{more}.",
            "Correct the list, or add the files.",
        )


def _get_vocabulary(content: Mapping[str, Any], path: Path) -> Vocabulary:
    name = content.get("vocabulary", AMOS.name)
    if name not in VOCABULARIES:
        raise UserError(f"The vocabulary '{name}' of {path} is unknown.", f"Choose one of: {', '.join(VOCABULARIES)}.")
    return VOCABULARIES[name]


@dataclass(frozen=True)
class _StoredEntry:
    image: str
    label: str | None = None
    unannotated: tuple[int, ...] | None = option(None, earlier=("unknown",))
    label_map: Mapping[int, int] = field(default_factory=dict)


def _parse_entry(data: Any, path: Path, place: str, vocabulary: Vocabulary, group: str) -> Entry:
    if isinstance(data, str) and group in ("test", "unlabelled"):
        data = {"image": data}
    if not isinstance(data, dict) or not isinstance(data.get("image"), str):
        raise UserError(f"{place} in {path} has no 'image'.", 'Write each entry as {"image": ..., "label": ...}.')
    try:
        stored = load(_StoredEntry, data, ignore_unknown=True)
    except DataError as error:
        raise UserError(
            f"{place} in {path} is wrong: {error}.",
            'Write entries like {"image": "a.nii", "label": "b.nii", "unannotated": [14], "label_map": {"52": 8}}.',
        ) from None
    if stored.label is None and group in _LABELED:
        raise UserError(
            f"{place} in {path} ({stored.image}) has no 'label'.",
            "Add its label map, or list it under 'unlabelled'.",
        )
    unannotated, label_map = tuple(sorted(set(stored.unannotated or ()))), stored.label_map
    used = (*unannotated, *label_map.values())
    unknown = sorted({label for label in used if label not in vocabulary.by_label} - {0})
    if unknown or 0 in unannotated:
        raise UserError(
            f"{place} in {path} uses label {unknown[0] if unknown else 0}, which is not an organ of {vocabulary.name}.",
            f"Use labels from 1 to {len(vocabulary)}.",
        )
    folder = path.absolute().parent
    label_file = None if stored.label is None else folder / stored.label
    return Entry(folder / stored.image, label_file, unannotated, label_map)


def _require_disjoint(groups: Mapping[str, tuple[Entry, ...]], path: Path) -> None:
    seen: dict[Path, str] = {}
    for group, entries in groups.items():
        for entry in entries:
            image = Path(os.path.normpath(entry.image))
            if image in seen:
                where = f"twice in {group}" if seen[image] == group else f"in {seen[image]} and in {group}"
                raise UserError(f"{entry.image.name} is listed {where} in {path}.", "List each CT once.")
            seen[image] = group


def _to_json(entry: Entry, folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = {"image": _make_relative(entry.image, folder)}
    if entry.label is not None:
        data["label"] = _make_relative(entry.label, folder)
    if entry.unannotated:
        data["unannotated"] = list(entry.unannotated)
    if entry.label_map:
        data["label_map"] = {str(theirs): ours for theirs, ours in entry.label_map.items()}
    return data


def _make_relative(file: Path, folder: Path) -> str:
    absolute = file.absolute()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)


def make_unique_names(paths: Sequence[Path]) -> list[str]:
    """Names of cases: the shortest endings of ``paths`` that differ from each other, with slashes."""
    length = 1
    while True:
        names = ["/".join(path.parts[-length:]) for path in paths]
        # If a CT is listed twice, no ending is unique.
        if len(set(names)) == len(set(paths)) or length >= max(len(path.parts) for path in paths):
            return names
        length += 1
