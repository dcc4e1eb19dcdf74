"""The list of a folder to learn from, ``dataset.json``, as MONAI and the Medical Decathlon have it.

A label map tells only of the organs that somebody looked at. The labels of the others are listed as ``unknown`` and are
background in the map: there they may be, or not, and a training must not take that for background.

The list follows from the folders: each writer makes it anew from what is there until nothing has come in between, so
two writers at once lose nothing. What somebody has added to it by hand stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..case_folder import (
    CASE,
    CASES,
    CT,
    LABELS,
    UNLABELLED,
    CorrectedCase,
    case_folders,
    read_case,
    read_unlabelled,
    unlabelled_folders,
)
from ..errors import UserError
from ..imaging.writing import write_json
from ..json_reading import read_json
from ..organs import Vocabulary
from .datalist import FOLDERS_LIST as LIST

_ADDED_HERE = (f"{CASES}/", f"{UNLABELLED}/")


def write_list(folder: Path, vocabulary: Vocabulary) -> None:
    """Make the list of ``folder`` anew from the cases that are there. Raises UserError where one is damaged."""
    listed: list[Path] | None = None
    while listed != (found := [*case_folders(folder), *unlabelled_folders(folder)]):
        cases = [read_case(path) for path in case_folders(folder)]
        bare = [read_unlabelled(path).parent.name for path in unlabelled_folders(folder)]
        write_json(_list(cases, bare, vocabulary, _read_list(folder)), folder / LIST)
        listed = found


def read_folder(folder: Path) -> tuple[list[CorrectedCase], dict[str, Any]]:
    """The corrected cases and the list of ``folder``. Raises UserError where anything that belongs to it is damaged."""
    for path in unlabelled_folders(folder):
        read_unlabelled(path)
    return [read_case(path) for path in case_folders(folder)], _read_list(folder)


def _list(
    cases: Sequence[CorrectedCase], bare: Sequence[str], vocabulary: Vocabulary, before: dict[str, Any]
) -> dict[str, Any]:
    """The list with these ``cases`` and, by name, the ``bare`` CTs, beside what else the one ``before`` holds."""
    labelled = [
        {
            "image": f"{CASES}/{case.name}/{CT}",
            "label": f"{CASES}/{case.name}/{LABELS}",
            "unknown": list(case.unknown),
            "provenance": f"{CASES}/{case.name}/{CASE}",
        }
        for case in cases
    ]
    # Once a CT is corrected, its labels are worth more.
    corrected = {case.name for case in cases}
    unlabelled = [{"image": f"{UNLABELLED}/{name}/{CT}"} for name in bare if name not in corrected]
    training = _joined(before, "training", labelled)
    return {
        "name": "Corrected cases",
        "description": "Corrected segmentations; labels in 'unknown' are not told of by a case's label map.",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "numTest": 0,
        "test": [],
        **before,
        "vocabulary": vocabulary.name,
        "labels": {"0": "background", **{str(organ.label): organ.key for organ in vocabulary}},
        "numTraining": len(training),
        "training": training,
        "unlabelled": _joined(before, "unlabelled", unlabelled),
    }


def _joined(before: dict[str, Any], group: str, own: list[dict[str, Any]]) -> list[Any]:
    """The entries of a group: others' as they were, then our own that stand in no other group.

    A case held back for validation is not trained on because another one was added.
    """
    others = [entry for entry in before.get(group, ()) if not _image(entry).startswith(_ADDED_HERE)]
    groups = [name for name in ("training", "unlabelled", "validation", "test") if name != group]
    elsewhere = {_image(entry) for name in groups for entry in before.get(name, ())}
    return others + [entry for entry in own if entry["image"] not in elsewhere]


def _read_list(folder: Path) -> dict[str, Any]:
    """The list as it is, empty where there is none. Raises UserError where it is damaged."""
    path = folder / LIST
    try:
        content = read_json(path)
        for group in ("training", "unlabelled"):
            if not all(isinstance(_image(entry), str) for entry in content.get(group, ())):
                raise ValueError("an entry has no image")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"The list {path} is damaged ({error}).", "Remove it: it is made again.") from None
    return dict(content)


def _image(entry: Any) -> Any:
    return entry if isinstance(entry, str) else entry.get("image")
