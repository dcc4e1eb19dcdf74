"""A folder of corrected cases to train on, as a list of data that MONAI reads (the format of the Medical Decathlon).

    dataset.json                the list: for each case image, label, unknown, provenance
    cases/<name>/ct.nii.gz      the CT, HU
    cases/<name>/labels.nii.gz  the corrected label map on the CT's grid
    cases/<name>/case.json      where it comes from: model with checksum, date, organs reviewed, places touched

A label map tells only of the organs that somebody looked at. The labels of the others are listed as ``unknown`` and are
background in the map: there they may be, or not, and a training must not take that for background.

Nobody's name is recorded, no path and nothing of a DICOM header: who corrected is no business of the data's.

A case appears as a whole folder by one rename, and never replaces another. The list follows from the folders: each
writer makes it anew from what is there until nothing has come in between, so two writers at once lose nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, UserError
from ..imaging.grid import Grid
from ..imaging.writing import new_folder, write_image, write_json
from ..organs import Vocabulary
from .datalist import FOLDERS_LIST as LIST

CASES = "cases"
FORMAT = "dca-corrected-case"
VERSION = 1

_CT, _LABELS, _CASE = "ct.nii.gz", "labels.nii.gz", "case.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class TouchedPlace:
    """A place of the review that somebody dealt with: its rank, its organ's key, and what became of it, such as
    ``corrected``, ``accepted`` or ``flagged``."""

    rank: int
    organ: str
    status: str


@dataclass(frozen=True)
class CorrectedCase:
    """One case of the folder. ``unknown`` are the labels its label map does not tell of."""

    name: str
    image: Path
    label: Path
    unknown: tuple[int, ...]
    vocabulary: str
    model: str
    model_sha256: str
    date: str
    reviewed: tuple[str, ...]
    places: tuple[TouchedPlace, ...]


def add_corrected_case(
    folder: Path,
    name: str,
    ct: sitk.Image,
    labels: sitk.Image,
    vocabulary: Vocabulary,
    reviewed: Collection[str],
    model: tuple[str, str],
    places: Sequence[TouchedPlace] = (),
) -> CorrectedCase:
    """Add a case to ``folder``, which is made if there is none, and give it as it will be read.

    ``name`` is the case's own: letters, digits, dots, dashes, underscores. ``labels`` (labels of ``vocabulary``) lie on
    the grid of ``ct``; ``reviewed`` are the keys of the organs that somebody has looked at, an organ without voxels
    included: it is not there. ``model`` is the name and the weights' SHA-256 of the model that was corrected.

    Raises UserError where nothing was reviewed, for an organ or a label the vocabulary does not know, a name that is
    none, and a folder for another vocabulary; ImageError for another grid; OutputError where a case of this name
    exists or the disk refuses. Then the folder is as it was.
    """
    folder = Path(folder)
    _require_name(name)
    unknown = _unknown(vocabulary, reviewed)
    known = _known_labels(ct, labels, vocabulary, unknown)
    _require_vocabulary(folder, vocabulary)
    _read_list(folder)
    (folder / CASES).mkdir(parents=True, exist_ok=True)
    grid = Grid.of(ct)
    with new_folder(folder / CASES / name) as case:
        # Of a new image: what a DICOM header has left in the CT's stays behind.
        write_image(grid.image_of(sitk.GetArrayFromImage(ct)), case / _CT)
        write_image(grid.image_of(known), case / _LABELS)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "vocabulary": vocabulary.name,
            "model": {"name": model[0], "sha256": model[1]},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "reviewed": [organ.key for organ in vocabulary if organ.key in reviewed],
            "unknown": list(unknown),
            "places": [asdict(place) for place in places],
            "sha256": {file: _sha256(case / file) for file in (_CT, _LABELS)},
        }
        write_json(content, case / _CASE)
    _write_list(folder, vocabulary)
    return _read_case(folder / CASES / name)


def read_dataset(folder: Path) -> list[CorrectedCase]:
    """The cases of a folder by name, those included that are not in the list yet.

    Raises UserError where there are none, or one is damaged: files missing, or others than were written.
    """
    cases = [_read_case(path) for path in _case_folders(Path(folder))]
    if not cases:
        raise UserError(f"{folder} holds no corrected cases.", "Add one in 3D Slicer: Add to training set.")
    for case in cases:
        content = json.loads((case.image.parent / _CASE).read_text(encoding="utf-8"))
        for path in (case.image, case.label):
            if _sha256(path) != content["sha256"][path.name]:
                raise UserError(f"{path} is not the file that was written.", f"Remove the folder {path.parent}.")
    return cases


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise UserError(
            f"A case cannot be called '{name}'.", "Use up to 80 letters, digits, dots, dashes and underscores."
        )


def _unknown(vocabulary: Vocabulary, reviewed: Collection[str]) -> tuple[int, ...]:
    if not reviewed:
        raise UserError("No organ of this case was reviewed.", "Mark at least one as corrected or accepted.")
    for key in sorted(reviewed):
        if key not in vocabulary.by_key:
            raise UserError(f"{vocabulary.name} has no organ '{key}'.", f"It knows: {', '.join(vocabulary.by_key)}.")
    return tuple(organ.label for organ in vocabulary if organ.key not in reviewed)


def _known_labels(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary, unknown: tuple[int, ...]) -> np.ndarray:
    if not Grid.of(ct).same_as(Grid.of(labels)):
        raise ImageError("The corrected labels do not lie on the grid of the CT.", "Export them on the CT's grid.")
    array = sitk.GetArrayFromImage(labels)
    values = np.unique(array)
    if values[0] < 0 or values[-1] > len(vocabulary) or not np.isin(values, range(len(vocabulary) + 1)).all():
        raise UserError(
            f"The corrected labels hold {values[-1]:g}, which is no label of {vocabulary.name}.",
            f"Its labels are 0 to {len(vocabulary)}.",
        )
    told = np.arange(len(vocabulary) + 1, dtype=np.uint8)
    told[list(unknown)] = 0
    return np.asarray(told[array.astype(np.uint8)])


def _require_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    for path in _case_folders(folder):
        other = _read_case(path).vocabulary
        if other != vocabulary.name:
            raise UserError(f"{folder} holds cases of {other}, not of {vocabulary.name}.", "Choose another folder.")


def _case_folders(folder: Path) -> list[Path]:
    # Folders that are still being written have another name and no case.json of this depth.
    return sorted(path.parent for path in (folder / CASES).glob(f"*/{_CASE}") if _NAME.fullmatch(path.parent.name))


def _read_case(path: Path) -> CorrectedCase:
    try:
        content = json.loads((path / _CASE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError("another format or version")
        case = CorrectedCase(
            name=path.name,
            image=path / _CT,
            label=path / _LABELS,
            unknown=tuple(int(label) for label in content["unknown"]),
            vocabulary=str(content["vocabulary"]),
            model=str(content["model"]["name"]),
            model_sha256=str(content["model"]["sha256"]),
            date=str(content["date"]),
            reviewed=tuple(str(key) for key in content["reviewed"]),
            places=tuple(
                TouchedPlace(int(place["rank"]), str(place["organ"]), str(place["status"]))
                for place in content["places"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The case {path} is damaged ({error}).", "Remove its folder, or restore it.") from None
    for file in (case.image, case.label):
        if not file.is_file():
            raise UserError(f"The case {path} is damaged: it has no {file.name}.", "Remove its folder, or restore it.")
    return case


def _write_list(folder: Path, vocabulary: Vocabulary) -> None:
    listed: list[Path] | None = None
    while listed != (found := _case_folders(folder)):
        cases = [_read_case(path) for path in found]
        write_json(_list(cases, vocabulary, _read_list(folder)), folder / LIST)
        listed = found


def _read_list(folder: Path) -> dict[str, Any]:
    """The list as it is, empty where there is none. Raises UserError where it is damaged."""
    path = folder / LIST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry.get("image"), str) for entry in content.get("training", ())):
            raise ValueError("an entry has no image")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"The list {path} is damaged ({error}).", "Remove it: it is made again.") from None
    return dict(content)


def _list(cases: Sequence[CorrectedCase], vocabulary: Vocabulary, before: dict[str, Any]) -> dict[str, Any]:
    """The list with ``cases``; what somebody has added to the one ``before``, unlabelled CTs for instance, stays."""
    own = [
        {
            "image": f"{CASES}/{case.name}/{_CT}",
            "label": f"{CASES}/{case.name}/{_LABELS}",
            "unknown": list(case.unknown),
            "provenance": f"{CASES}/{case.name}/{_CASE}",
        }
        for case in cases
    ]
    others = [entry for entry in before.get("training", ()) if not entry["image"].startswith(f"{CASES}/")]
    elsewhere = json.dumps([before.get(group, []) for group in ("validation", "test", "unlabelled")])
    # A case held back for validation is not trained on because another one was added.
    training = others + [entry for entry in own if json.dumps(entry["image"]) not in elsewhere]
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
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
