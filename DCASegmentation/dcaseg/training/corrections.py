"""A folder of corrected cases and unlabeled CTs for training.

    dataset.json                      the data list (see ``training.datalist``)
    cases/<name>/ct.nii.gz            the CT, in HU
    cases/<name>/labels.nii.gz        the corrected label map, on the CT's grid
    cases/<name>/case.json            its origin: model with checksum, date, reviewed organs, findings and clicks
    unlabelled/<name>/ct.nii.gz       an unlabeled CT
    unlabelled/<name>/case.json       its date and checksum

No names of persons, no paths and no DICOM header are recorded. A case is written to a temporary folder, which is then
renamed; it never replaces another case.

A label map includes only the organs that were reviewed. The labels of the other organs are listed as ``unannotated``.
They are background in the map, but the organs may still be there, so training must not treat them as background.

The data list is generated from the folders. Each writer repeats this until no new case has appeared in the meantime, so
several writers at once lose nothing. Entries that were added by hand are kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..checksums import compute_sha256
from ..errors import ImageError, UserError, get_reason
from ..imaging.ct_checks import require_ct
from ..imaging.grid import Grid
from ..imaging.intensity import compute_voxel_checksum
from ..imaging.writers import new_folder, write_image, write_json
from ..json_io import DataError, load, read_json
from ..option_fields import make_option_metadata
from ..organs import AMOS, VOCABULARIES, Vocabulary
from ..temp_paths import clean
from .datalist import FOLDERS_LIST as LIST

CASES, UNLABELED = "cases", "unlabelled"
CT, LABELS, CASE = "ct.nii.gz", "labels.nii.gz", "case.json"
CASE_FORMAT, UNLABELED_FORMAT = "dca-corrected-case", "dca-unlabelled-ct"
VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class CheckedFinding:
    """A review finding that the user handled: its rank, its organ's key, and its status.

    The status is, for example, ``corrected``, ``accepted`` or ``flagged``.
    """

    rank: int
    organ: str
    status: str


@dataclass(frozen=True)
class OrganClicks:
    """The number of clicks that added to an organ and that removed from it; ``organ`` is its key."""

    organ: str
    added: int
    removed: int


@dataclass(frozen=True)
class CorrectedCase:
    """A corrected case.

    ``unannotated`` are the labels that its label map does not include, ``reviewed`` the keys of the organs that it
    does. ``model`` and ``model_sha256`` are the name and weights' checksum of the corrected model, ``places`` the
    findings, ``clicks`` the clicks for organs that were corrected with clicks.
    """

    name: str
    image: Path
    label: Path
    unannotated: tuple[int, ...]
    vocabulary: str
    model: str
    model_sha256: str
    date: str
    reviewed: tuple[str, ...]
    places: tuple[CheckedFinding, ...]
    clicks: tuple[OrganClicks, ...] = ()


def make_case_name(checksum: str, version: int = 1) -> str:
    """The name of a CT's case: it contains the ``checksum`` of the voxels (``imaging.intensity``), never a file name.

    ``version`` numbers the corrections of the same CT.
    """
    return f"ct-{checksum}" + (f"-{version}" if version > 1 else "")


def require_name(name: str) -> None:
    """Raise UserError if ``name`` is not valid: letters, digits, dots, dashes and underscores are allowed."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise UserError(
            f"'{name}' is not a valid case name.", "Use up to 80 letters, digits, dots, dashes and underscores."
        )


def list_case_folders(folder: Path) -> list[Path]:
    """The folders of the corrected cases in ``folder``, sorted by name."""
    return _complete_cases(folder / CASES)


def list_unlabeled_folders(folder: Path) -> list[Path]:
    """The folders of the unlabeled CTs in ``folder``, sorted by name."""
    return _complete_cases(folder / UNLABELED)


def write_ct(ct: sitk.Image, case: Path) -> None:
    """Write the CT of a case into its folder, as a new image without metadata from a DICOM header."""
    write_image(Grid.from_image(ct).make_image(sitk.GetArrayFromImage(ct)), case / CT)


@dataclass(frozen=True)
class _StoredModel:
    name: str
    sha256: str


@dataclass(frozen=True)
class _StoredCase:
    """The content of ``case.json``."""

    unannotated: tuple[int, ...] = field(metadata=make_option_metadata(earlier=("unknown",)))
    vocabulary: str
    model: _StoredModel
    date: str
    reviewed: tuple[str, ...]
    places: tuple[CheckedFinding, ...]
    # Earlier versions did not write it, and ignore it.
    clicks: tuple[OrganClicks, ...] = ()


def read_case(path: Path) -> CorrectedCase:
    """Read the corrected case in the folder ``path``. Raises UserError if it is damaged."""
    try:
        stored = load(_StoredCase, _read_content(path, CASE_FORMAT), ignore_unknown=True)
    except DataError as error:
        raise _make_damaged_error(path, str(error)) from None
    _require_files(path, (CT, LABELS))
    return CorrectedCase(
        name=path.name,
        image=path / CT,
        label=path / LABELS,
        unannotated=stored.unannotated,
        vocabulary=stored.vocabulary,
        model=stored.model.name,
        model_sha256=stored.model.sha256,
        date=stored.date,
        reviewed=stored.reviewed,
        places=stored.places,
        clicks=stored.clicks,
    )


def read_unlabeled(path: Path) -> Path:
    """The CT file of the unlabeled case in the folder ``path``. Raises UserError if the case is damaged."""
    _read_content(path, UNLABELED_FORMAT)
    _require_files(path, (CT,))
    return path / CT


def require_unchanged(path: Path) -> None:
    """Raise UserError if a file of the case in ``path`` has changed since it was written."""
    try:
        checksums = {str(name): str(expected) for name, expected in read_json(path / CASE)["sha256"].items()}
        if not set(checksums) <= {CT, LABELS}:
            raise ValueError("it contains checksums of other files")
        changed = [name for name, expected in checksums.items() if compute_sha256(path / name) != expected]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _make_damaged_error(path, str(error)) from None
    if changed:
        raise UserError(f"{path / changed[0]} has changed since it was written.", f"Remove the folder {path}.")


def _complete_cases(folder: Path) -> list[Path]:
    # Folders that are still being written have another name, or no case.json at this depth.
    return sorted(path.parent for path in folder.glob(f"*/{CASE}") if _NAME.fullmatch(path.parent.name))


def _read_content(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = read_json(path / CASE)
        if content["format"] != expected or content["version"] != VERSION:
            raise ValueError("it has another format or version")
        return dict(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _make_damaged_error(path, str(error)) from None


def _require_files(path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (path / name).is_file():
            raise UserError(f"The case {path} is damaged: it has no {name}.", "Remove or restore its folder.")


def _make_damaged_error(path: Path, reason: str) -> UserError:
    return UserError(f"The case {path} is damaged ({reason}).", "Remove or restore its folder.")


_GENERATED = (f"{CASES}/", f"{UNLABELED}/")


def write_list(folder: Path, vocabulary: Vocabulary) -> None:
    """Generate the data list of ``folder`` from its cases. Raises UserError if a case is damaged."""
    listed: list[Path] | None = None
    while listed != (current := [*list_case_folders(folder), *list_unlabeled_folders(folder)]):
        cases = [read_case(path) for path in list_case_folders(folder)]
        unlabeled = [read_unlabeled(path).parent.name for path in list_unlabeled_folders(folder)]
        write_json(_list(cases, unlabeled, vocabulary, _read_list(folder)), folder / LIST)
        listed = current


def read_folder(folder: Path) -> tuple[list[CorrectedCase], dict[str, Any]]:
    """The corrected cases and the data list of ``folder``. Raises UserError if a case or the list is damaged."""
    for path in list_unlabeled_folders(folder):
        read_unlabeled(path)
    return [read_case(path) for path in list_case_folders(folder)], _read_list(folder)


def _list(
    cases: Sequence[CorrectedCase], unlabeled: Sequence[str], vocabulary: Vocabulary, previous: dict[str, Any]
) -> dict[str, Any]:
    """The data list with these ``cases``, the ``unlabeled`` CTs (by name), and other entries of the ``previous``
    list."""
    labeled_entries = [
        {
            "image": f"{CASES}/{case.name}/{CT}",
            "label": f"{CASES}/{case.name}/{LABELS}",
            "unannotated": list(case.unannotated),
            "provenance": f"{CASES}/{case.name}/{CASE}",
        }
        for case in cases
    ]
    # A CT that has been corrected is used with its labels only.
    corrected = {case.name for case in cases}
    unlabeled_entries = [{"image": f"{UNLABELED}/{name}/{CT}"} for name in unlabeled if name not in corrected]
    training = _merge(previous, "training", labeled_entries)
    return {
        "name": "Corrected cases",
        "description": "Corrected segmentations. A label map does not include the labels in 'unannotated'.",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "numTest": 0,
        "test": [],
        **previous,
        "vocabulary": vocabulary.name,
        "labels": {"0": "background", **{str(organ.label): organ.key for organ in vocabulary}},
        "numTraining": len(training),
        "training": training,
        "unlabelled": _merge(previous, "unlabelled", unlabeled_entries),
    }


def _merge(previous: dict[str, Any], group: str, generated: list[dict[str, Any]]) -> list[Any]:
    """The entries of a group: those added by hand, then the ``generated`` ones that are not in another group.

    So a case that was moved to the validation group stays there when another case is added.
    """
    by_hand = [entry for entry in previous.get(group, ()) if not _get_image(entry).startswith(_GENERATED)]
    other_groups = [name for name in ("training", "unlabelled", "validation", "test") if name != group]
    elsewhere = {_get_image(entry) for name in other_groups for entry in previous.get(name, ())}
    return by_hand + [entry for entry in generated if entry["image"] not in elsewhere]


def _read_list(folder: Path) -> dict[str, Any]:
    """The data list of ``folder``; empty if there is none. Raises UserError if it is damaged."""
    path = folder / LIST
    try:
        content = read_json(path)
        for group in ("training", "unlabelled"):
            if not all(isinstance(_get_image(entry), str) for entry in content.get(group, ())):
                raise ValueError("an entry has no image")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"The data list {path} is damaged ({get_reason(error)}).", "Remove it; it will be created again."
        ) from None
    return dict(content)


def _get_image(entry: Any) -> Any:
    return entry if isinstance(entry, str) else entry.get("image")


def add_corrected_case(
    folder: Path,
    name: str,
    ct: sitk.Image,
    labels: sitk.Image,
    vocabulary: Vocabulary,
    reviewed: Collection[str],
    model: tuple[str, str],
    places: Sequence[CheckedFinding] = (),
    clicks: Sequence[OrganClicks] = (),
) -> CorrectedCase:
    """Add a corrected case to ``folder``, which is created if necessary, and return it.

    - ``name``: letters, digits, dots, dashes and underscores (see ``make_case_name``).
    - ``labels``: labels of ``vocabulary`` on the grid of ``ct``.
    - ``reviewed``: the keys of the organs that were reviewed. A reviewed organ without voxels is absent.
    - ``model``: the name and the weights' SHA-256 of the corrected model.
    - ``places``: the review findings that were handled.
    - ``clicks``: the clicks for each organ that was corrected with clicks.

    Raises UserError if nothing was reviewed, for organs or labels outside the vocabulary, an invalid name, or a folder
    with another vocabulary; ImageError if the grids differ; OutputError if the case exists or cannot be written. The
    folder is then unchanged.
    """
    folder = Path(folder)
    require_name(name)
    clean(folder)
    unannotated = _find_unannotated_labels(vocabulary, reviewed)
    reviewed_labels = _extract_reviewed_labels(ct, labels, vocabulary, unannotated)
    cases, _ = read_folder(folder)
    if any(case.vocabulary != vocabulary.name for case in cases):
        other = cases[0].vocabulary
        raise UserError(
            f"{folder} contains cases with the vocabulary {other}, not {vocabulary.name}.", "Choose another folder."
        )
    (folder / CASES).mkdir(parents=True, exist_ok=True)
    with new_folder(folder / CASES / name, private=True) as case:
        write_ct(ct, case)
        write_image(Grid.from_image(ct).make_image(reviewed_labels), case / LABELS)
        content = {
            "format": CASE_FORMAT,
            "version": VERSION,
            "vocabulary": vocabulary.name,
            "model": {"name": model[0], "sha256": model[1]},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "reviewed": [organ.key for organ in vocabulary if organ.key in reviewed],
            "unannotated": list(unannotated),
            "places": [asdict(place) for place in places],
            "clicks": [asdict(each) for each in clicks],
            "sha256": {file: compute_sha256(case / file) for file in (CT, LABELS)},
        }
        write_json(content, case / CASE)
    write_list(folder, vocabulary)
    return read_case(folder / CASES / name)


def read_dataset(folder: Path) -> list[CorrectedCase]:
    """Read the corrected cases of a folder, sorted by name, including those that are not in the data list yet.

    Raises UserError if there are none, or if a case is damaged: files are missing or have changed.
    """
    cases = [read_case(path) for path in list_case_folders(Path(folder))]
    if not cases:
        raise UserError(
            f"{folder} contains no corrected cases.", "Add a case in 3D Slicer with the button Add to training set."
        )
    for case in cases:
        require_unchanged(case.image.parent)
    return cases


def _find_unannotated_labels(vocabulary: Vocabulary, reviewed: Collection[str]) -> tuple[int, ...]:
    if not reviewed:
        raise UserError("No organ of this case was reviewed.", "Mark at least one organ as corrected or accepted.")
    for key in sorted(reviewed):
        if key not in vocabulary.by_key:
            raise UserError(f"{vocabulary.name} has no organ '{key}'.", f"Choose from: {', '.join(vocabulary.by_key)}.")
    return tuple(organ.label for organ in vocabulary if organ.key not in reviewed)


def _extract_reviewed_labels(
    ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary, unannotated: tuple[int, ...]
) -> np.ndarray:
    """``labels`` as an array (z, y, x), uint8, with the ``unannotated`` ones set to background."""
    if not Grid.from_image(ct).is_same_as(Grid.from_image(labels)):
        raise ImageError(
            "The corrected labels and the CT have different grids.", "Export the labels on the grid of the CT."
        )
    array = sitk.GetArrayFromImage(labels)
    values = np.unique(array)
    if values[0] < 0 or values[-1] > len(vocabulary) or not np.isin(values, range(len(vocabulary) + 1)).all():
        raise UserError(
            f"The corrected labels contain {values[-1]:g}, which is not a label of {vocabulary.name}.",
            f"Use labels from 0 to {len(vocabulary)}.",
        )
    table = np.arange(len(vocabulary) + 1, dtype=np.uint8)
    table[list(unannotated)] = 0
    return np.asarray(table[array.astype(np.uint8)])


class AlreadyThereError(UserError):
    """The folder already contains this CT."""


def add_unlabeled_ct(folder: Path, ct: sitk.Image) -> Path:
    """Add an unlabeled CT (HU) to ``folder``, which is created if necessary, and return the file that was written.

    Like a corrected case, it is named after the checksum of its voxels, so that a CT cannot be added twice.

    Raises AlreadyThereError if the folder contains the CT, with or without labels; UserError if the folder is damaged;
    ImageError if ``ct`` is not a CT in HU; OutputError if it cannot be written. The folder is then unchanged.
    """
    folder = Path(folder)
    require_ct(ct, "The CT")
    clean(folder)
    name = make_case_name(compute_voxel_checksum(sitk.GetArrayViewFromImage(ct)))
    vocabulary = _read_vocabulary(folder)
    for group, what in ((CASES, "with corrected organs"), (UNLABELED, "without labels")):
        if (folder / group / name).exists():
            raise AlreadyThereError(f"This CT is already in {folder}, {what} ({name}).", "It need not be added again.")
    (folder / UNLABELED).mkdir(parents=True, exist_ok=True)
    with new_folder(folder / UNLABELED / name, private=True) as case:
        write_ct(ct, case)
        content = {
            "format": UNLABELED_FORMAT,
            "version": VERSION,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "sha256": {CT: compute_sha256(case / CT)},
        }
        write_json(content, case / CASE)
    write_list(folder, vocabulary)
    return read_unlabeled(folder / UNLABELED / name)


def read_unlabeled_cts(folder: Path) -> list[Path]:
    """The files of the unlabeled CTs, sorted by name. Raises UserError if one is damaged or has changed."""
    folders = list_unlabeled_folders(Path(folder))
    for path in folders:
        require_unchanged(path)
    return [read_unlabeled(path) for path in folders]


def _read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of the folder's cases or data list; AMOS for a folder that has neither."""
    cases, listed = read_folder(folder)
    name = cases[0].vocabulary if cases else listed.get("vocabulary", AMOS.name)
    if name not in VOCABULARIES:
        raise UserError(
            f"{folder} uses the vocabulary {name}, which this version does not know.", "Update DCASegmentation."
        )
    return VOCABULARIES[name]
