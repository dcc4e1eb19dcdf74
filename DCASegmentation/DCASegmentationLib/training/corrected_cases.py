"""Corrected cases to train on, in a folder (see ``case_folder``): what was reviewed is told, all else is unknown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..case_folder import (
    CASE,
    CASE_FORMAT,
    CASES,
    CT,
    LABELS,
    VERSION,
    CorrectedCase,
    TouchedPlace,
    case_folders,
    read_case,
    require_name,
    require_unchanged,
    sha256,
    write_ct,
)
from ..errors import ImageError, UserError
from ..imaging.grid import Grid
from ..imaging.writing import new_folder, write_image, write_json
from ..organs import Vocabulary
from ..partials import clean
from .case_folder_list import read_folder, write_list


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
    unknown = _unknown(vocabulary, reviewed)
    known = _known_labels(ct, labels, vocabulary, unknown)
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
            "unknown": list(unknown),
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
