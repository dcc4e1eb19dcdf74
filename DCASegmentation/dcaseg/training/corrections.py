"""A folder of corrected cases, and of CTs without labels, to train on.

    dataset.json                      the list (see ``training.corrections``)
    cases/<name>/ct.nii.gz            the CT, HU
    cases/<name>/labels.nii.gz        the corrected label map on the CT's grid
    cases/<name>/case.json            where it comes from: model with checksum, date, organs reviewed, places touched
    unlabelled/<name>/ct.nii.gz       a CT that nobody has labelled
    unlabelled/<name>/case.json       its date and checksum

Nobody's name is recorded, no path and nothing of a DICOM header: who corrected is no business of the data's. A case
appears as a whole folder by one rename, and never replaces another.

A label map tells only of the organs that somebody looked at. The labels of the others are listed as ``unannotated`` and
are background in the map: there they may be, or not, and a training must not take that for background.

The list follows from the folders: each writer makes it anew from what is there until nothing has come in between, so
two writers at once lose nothing. What somebody has added to it by hand stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, UserError
from ..imaging.ct_checks import check_ct
from ..imaging.grid import Grid
from ..imaging.intensity import voxel_checksum
from ..imaging.writers import new_folder, write_image, write_json
from ..json_io import read_json
from ..organs import AMOS, VOCABULARIES, Vocabulary
from ..temp_paths import clean
from .datalist import FOLDERS_LIST as LIST

CASES, UNLABELLED = "cases", "unlabelled"
CT, LABELS, CASE = "ct.nii.gz", "labels.nii.gz", "case.json"
CASE_FORMAT, UNLABELLED_FORMAT = "dca-corrected-case", "dca-unlabelled-ct"
VERSION = 1

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
    """One case of the folder. ``unannotated`` are the labels its label map does not tell of."""

    name: str
    image: Path
    label: Path
    unannotated: tuple[int, ...]
    vocabulary: str
    model: str
    model_sha256: str
    date: str
    reviewed: tuple[str, ...]
    places: tuple[TouchedPlace, ...]


def case_name(checksum: str, version: int = 1) -> str:
    """What the case of a CT is called: by the checksum of its voxels (``imaging.intensity``), never by a file's name.

    ``version`` counts the corrections of one CT that were added.
    """
    return f"ct-{checksum}" + (f"-{version}" if version > 1 else "")


def require_name(name: str) -> None:
    """Raises UserError unless a case may be called so: letters, digits, dots, dashes, underscores."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise UserError(
            f"A case cannot be called '{name}'.", "Use up to 80 letters, digits, dots, dashes and underscores."
        )


def case_folders(folder: Path) -> list[Path]:
    """The folders of the corrected cases in ``folder``, by name."""
    return _whole(folder / CASES)


def unlabelled_folders(folder: Path) -> list[Path]:
    """The folders of the CTs without labels in ``folder``, by name."""
    return _whole(folder / UNLABELLED)


def write_ct(ct: sitk.Image, case: Path) -> None:
    """Write the CT of a case into its folder: as a new image, so that what a DICOM header has left stays behind."""
    write_image(Grid.of(ct).image_of(sitk.GetArrayFromImage(ct)), case / CT)


def read_case(path: Path) -> CorrectedCase:
    """The corrected case in the folder ``path``. Raises UserError where it is damaged."""
    content = _read_content(path, CASE_FORMAT)
    try:
        case = CorrectedCase(
            name=path.name,
            image=path / CT,
            label=path / LABELS,
            unannotated=tuple(
                int(label) for label in content["unannotated" if "unannotated" in content else "unknown"]
            ),
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
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from None
    _require_files(path, (CT, LABELS))
    return case


def read_unlabelled(path: Path) -> Path:
    """The CT without labels in the folder ``path``. Raises UserError where it is damaged."""
    _read_content(path, UNLABELLED_FORMAT)
    _require_files(path, (CT,))
    return path / CT


def require_unchanged(path: Path) -> None:
    """Raises UserError where a file of the case in ``path`` is not the one that was written."""
    try:
        checksums = {str(name): str(expected) for name, expected in read_json(path / CASE)["sha256"].items()}
        if not set(checksums) <= {CT, LABELS}:
            raise ValueError("checksums of other files")
        changed = [name for name, expected in checksums.items() if sha256(path / name) != expected]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from None
    if changed:
        raise UserError(f"{path / changed[0]} is not the file that was written.", f"Remove the folder {path}.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _whole(folder: Path) -> list[Path]:
    # Folders that are still being written have another name and no case.json of this depth.
    return sorted(path.parent for path in folder.glob(f"*/{CASE}") if _NAME.fullmatch(path.parent.name))


def _read_content(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = read_json(path / CASE)
        if content["format"] != expected or content["version"] != VERSION:
            raise ValueError("another format or version")
        return dict(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from None


def _require_files(path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (path / name).is_file():
            raise UserError(f"The case {path} is damaged: it has no {name}.", "Remove its folder, or restore it.")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"The case {path} is damaged ({reason}).", "Remove its folder, or restore it.")


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
            "unannotated": list(case.unannotated),
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
        "description": "Corrected segmentations; a case's label map says nothing of the labels in 'unannotated'.",
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
    require_name(name)
    clean(folder)
    unannotated = _unannotated(vocabulary, reviewed)
    known = _known_labels(ct, labels, vocabulary, unannotated)
    cases, _listed = read_folder(folder)
    if any(case.vocabulary != vocabulary.name for case in cases):
        other = cases[0].vocabulary
        raise UserError(f"{folder} holds cases of {other}, not of {vocabulary.name}.", "Choose another folder.")
    (folder / CASES).mkdir(parents=True, exist_ok=True)
    with new_folder(folder / CASES / name, private=True) as case:
        write_ct(ct, case)
        write_image(Grid.of(ct).image_of(known), case / LABELS)
        content = {
            "format": CASE_FORMAT,
            "version": VERSION,
            "vocabulary": vocabulary.name,
            "model": {"name": model[0], "sha256": model[1]},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "reviewed": [organ.key for organ in vocabulary if organ.key in reviewed],
            "unannotated": list(unannotated),
            "places": [asdict(place) for place in places],
            "sha256": {file: sha256(case / file) for file in (CT, LABELS)},
        }
        write_json(content, case / CASE)
    write_list(folder, vocabulary)
    return read_case(folder / CASES / name)


def read_dataset(folder: Path) -> list[CorrectedCase]:
    """The cases of a folder by name, those included that are not in the list yet.

    Raises UserError where there are none, or one is damaged: files missing, or others than were written.
    """
    cases = [read_case(path) for path in case_folders(Path(folder))]
    if not cases:
        raise UserError(f"{folder} holds no corrected cases.", "Add one in 3D Slicer: Add to training set.")
    for case in cases:
        require_unchanged(case.image.parent)
    return cases


def _unannotated(vocabulary: Vocabulary, reviewed: Collection[str]) -> tuple[int, ...]:
    if not reviewed:
        raise UserError("No organ of this case was reviewed.", "Mark at least one as corrected or accepted.")
    for key in sorted(reviewed):
        if key not in vocabulary.by_key:
            raise UserError(f"{vocabulary.name} has no organ '{key}'.", f"It knows: {', '.join(vocabulary.by_key)}.")
    return tuple(organ.label for organ in vocabulary if organ.key not in reviewed)


def _known_labels(
    ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary, unannotated: tuple[int, ...]
) -> np.ndarray:
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
    told[list(unannotated)] = 0
    return np.asarray(told[array.astype(np.uint8)])


class AlreadyThereError(UserError):
    """The folder holds this CT already."""


def add_unlabelled_ct(folder: Path, ct: sitk.Image) -> Path:
    """Add a CT (HU) to ``folder``, which is made if there is none, and give the file it was written to.

    It is named after its voxels, as a corrected case is, so that a CT is noticed that is there already.

    Raises AlreadyThereError where it is, with labels or without; UserError where the folder is damaged; ImageError for
    what is no CT in HU; OutputError where the disk refuses. Then the folder is as it was.
    """
    folder = Path(folder)
    check_ct(ct)
    clean(folder)
    name = case_name(voxel_checksum(sitk.GetArrayViewFromImage(ct)))
    vocabulary = _vocabulary(folder)
    for group, what in ((CASES, "with corrected organs"), (UNLABELLED, "without labels")):
        if (folder / group / name).exists():
            raise AlreadyThereError(f"This CT is in {folder} already, {what} ({name}).", "Once is enough.")
    (folder / UNLABELLED).mkdir(parents=True, exist_ok=True)
    with new_folder(folder / UNLABELLED / name, private=True) as case:
        write_ct(ct, case)
        content = {
            "format": UNLABELLED_FORMAT,
            "version": VERSION,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "sha256": {CT: sha256(case / CT)},
        }
        write_json(content, case / CASE)
    write_list(folder, vocabulary)
    return read_unlabelled(folder / UNLABELLED / name)


def read_unlabelled_cts(folder: Path) -> list[Path]:
    """The files of the CTs without labels, by name. Raises UserError where one is damaged or not what was written."""
    folders = unlabelled_folders(Path(folder))
    for path in folders:
        require_unchanged(path)
    return [read_unlabelled(path) for path in folders]


def _vocabulary(folder: Path) -> Vocabulary:
    """That of the folder's cases or list. A CT without labels has none: where nothing names one, the list says AMOS."""
    cases, listed = read_folder(folder)
    name = cases[0].vocabulary if cases else listed.get("vocabulary", AMOS.name)
    if name not in VOCABULARIES:
        raise UserError(f"{folder} has organs called {name}, which this version does not know.", "Update it.")
    return VOCABULARIES[name]
