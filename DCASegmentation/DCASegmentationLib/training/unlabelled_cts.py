"""CTs without labels beside the corrected cases of a folder: a semi-supervised training learns from them, too."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import SimpleITK as sitk

from ..case_folder import (
    CASE,
    CASES,
    CT,
    UNLABELLED,
    UNLABELLED_FORMAT,
    VERSION,
    case_name,
    read_unlabelled,
    require_unchanged,
    sha256,
    unlabelled_folders,
    write_ct,
)
from ..errors import UserError
from ..imaging.ct_check import check_ct
from ..imaging.voxels import voxel_checksum
from ..imaging.writing import new_folder, write_json
from ..organs import AMOS, VOCABULARIES, Vocabulary
from ..partials import clean
from .case_folder_list import read_folder, write_list


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
