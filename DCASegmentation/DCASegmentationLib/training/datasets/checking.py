"""What is wrong with the files of a list, all of it, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ...errors import ImageError
from ...imaging.ct_check import check_ct
from ...imaging.geometry import lay_over
from ...imaging.reading import read_ct, read_labels
from ...imaging.voxels import left_out, told_left_out
from ..datalist import Datalist, Entry

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Checked:
    """``errors`` keep the list from being trained on, ``warnings`` do not; ``voxels`` are those of each label 0 to K
    in the training group's label maps."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    voxels: tuple[int, ...]


def check_files(datalist: Datalist, progress: Progress | None = None) -> Checked:
    """Read every file of the list.

    Errors: a file that is missing, unreadable or no CT (an MRI, say), a label map on another grid than its CT, a label
    that the vocabulary does not have, or one that the entry says its map does not tell of. Warnings: what was put right
    while reading, labels that a ``label_map`` leaves out, organs without a voxel in the training group, one labelled
    case, no unlabelled one, none to validate on.
    """
    errors: list[str] = []
    notes: list[str] = []
    unnamed: list[dict[int, int]] = []
    voxels = np.zeros(len(datalist.vocabulary) + 1, np.int64)
    entries = [(group, entry) for group, listed in datalist.groups() for entry in listed]
    for index, (group, entry) in enumerate(entries):
        try:
            counts = _check(entry, len(datalist.vocabulary), notes, unnamed)
            if group == "training":
                voxels += counts
        except ImageError as error:
            errors.append(f"{group}: {error.problem}")
        if progress is not None:
            progress((index + 1) / len(entries), f"Reading {entry.image.name}")
    warnings = (*dict.fromkeys(notes), *told_left_out(unnamed), *_warnings(datalist, voxels))
    return Checked(tuple(errors), warnings, tuple(int(count) for count in voxels))


def _check(entry: Entry, highest: int, notes: list[str], unnamed: list[dict[int, int]]) -> np.ndarray:
    """Voxels of each label, in the vocabulary's numbers. ``unnamed`` gets the labels that a label_map leaves out."""
    ct = read_ct(_there(entry.image), notes=notes)
    notes += [f"{entry.image.name}: {note}" for note in check_ct(ct)]
    if entry.label is None:
        return np.zeros(highest + 1, np.int64)
    labels = read_labels(_there(entry.label), notes)
    name = entry.label.name
    lay_over(labels, name, ct, entry.image.name, notes)
    if entry.label_map:
        unnamed.append(left_out(labels, entry.label_map))
    theirs = np.bincount(sitk.GetArrayViewFromImage(labels).ravel())
    counts = np.zeros(highest + 1, np.int64)
    for number, count in enumerate(theirs):
        ours = entry.label_map.get(number, 0) if entry.label_map else number
        if count and ours > highest:
            raise ImageError(f"{name} holds label {number}; the vocabulary ends at {highest}.", "Add a label_map.")
        if ours <= highest:
            counts[ours] += count
    told = [label for label in entry.unknown if counts[label]]
    if told:
        raise ImageError(f"{name} has voxels of label {told[0]}, which is listed as unknown.", "Correct the list.")
    return counts


def _there(path: Path) -> Path:
    if not path.exists():
        raise ImageError(f"There is no file {path}.", "Put it there, or correct the list.")
    return path


def _warnings(datalist: Datalist, voxels: np.ndarray) -> tuple[str, ...]:
    found = []
    absent = [organ.name for organ in datalist.vocabulary if not voxels[organ.label]]
    if absent:
        found.append(f"No labelled training case has a voxel of: {', '.join(absent)}. They go to the tail, unlearned.")
    if len(datalist.training) == 1:
        found.append("There is one labelled training case.")
    if not datalist.unlabelled:
        found.append("There is no unlabelled case: the training is supervised alone.")
    if not datalist.validation:
        found.append("There is no case to validate on: no best weights are chosen.")
    return tuple(found)
