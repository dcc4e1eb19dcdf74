"""Label maps of other programs in the numbers of a vocabulary, by the names in a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import UserError
from ..imaging.grid import Grid
from ..organs import Vocabulary

# TotalSegmentator's names that are more than a matter of where the side stands.
_SAME = {"urinary_bladder": "bladder", "prostate": "prostate_uterus"}


def read_table(path: Path, vocabulary: Vocabulary) -> dict[int, int]:
    """Which label of ``vocabulary`` each label of a map is, from a table with the columns ``id`` and ``name``.

    Separated by tabs or commas. Names are the vocabulary's keys, in any case, with the side before or after
    (``kidney_right``); rows of other structures are left out. Raises UserError for another file, or where none fits.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = file.readline()
            file.seek(0)
            rows = list(csv.DictReader(file, delimiter="\t" if "\t" in head else ","))
        named = {int(row["id"]): _key(row["name"]) for row in rows}
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no table of labels ({error}).", "It needs the columns id and name.") from None
    found = {label: vocabulary.by_key[key].label for label, key in named.items() if key in vocabulary.by_key}
    if not found:
        raise UserError(f"{path} names no organ of {vocabulary.name}.", f"It knows: {', '.join(vocabulary.by_key)}.")
    return found


def translated(labels: sitk.Image, table: dict[int, int]) -> sitk.Image:
    """``labels`` in the vocabulary's numbers (uint8); what the table lacks becomes background."""
    array = sitk.GetArrayViewFromImage(labels)
    new = np.zeros(int(array.max()) + 1, np.uint8)
    for old, label in table.items():
        if old < len(new):
            new[old] = label
    return Grid.of(labels).image_of(new[array])


def _key(name: str) -> str:
    key = "_".join(name.strip().lower().split())
    for side in ("left", "right"):
        if key.endswith(f"_{side}"):
            key = f"{side}_{key.removesuffix(f'_{side}')}"
    return _SAME.get(key, key)
