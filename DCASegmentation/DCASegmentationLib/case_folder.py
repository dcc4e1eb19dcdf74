"""What a folder to learn from holds, as files: corrected cases, and CTs without labels.

    dataset.json                      the list (see ``training.case_folder_list``)
    cases/<name>/ct.nii.gz            the CT, HU
    cases/<name>/labels.nii.gz        the corrected label map on the CT's grid
    cases/<name>/case.json            where it comes from: model with checksum, date, organs reviewed, places touched
    unlabelled/<name>/ct.nii.gz       a CT that nobody has labelled
    unlabelled/<name>/case.json       its date and checksum

Nobody's name is recorded, no path and nothing of a DICOM header: who corrected is no business of the data's. A case
appears as a whole folder by one rename, and never replaces another.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .errors import UserError
from .imaging.grid import Grid
from .imaging.writing import write_image
from .json_reading import read_json

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


def case_name(checksum: str, version: int = 1) -> str:
    """What the case of a CT is called: by the checksum of its voxels (``imaging.voxels``), never by a file's name.

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
