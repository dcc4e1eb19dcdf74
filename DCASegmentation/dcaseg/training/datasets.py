"""Creates data lists for public datasets and for folders of CTs, and checks the files of a data list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, UserError
from ..imaging.ct_checks import check_ct
from ..imaging.file_errors import exists
from ..imaging.geometry import copy_geometry_if_close
from ..imaging.intensity import count_ignored_labels, describe_ignored_labels
from ..imaging.readers import read_ct, read_labels
from ..organs import AMOS, SYNAPSE, Vocabulary
from ..types import ProgressCallback
from . import published_splits as splits
from .datalist import Datalist, Entry


@dataclass(frozen=True)
class Checked:
    """Result of ``check_files``.

    ``errors`` must be corrected before training; ``warnings`` need not. ``voxels`` is the number of voxels of each
    label 0 to K in the label maps of the training group.
    """

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    voxels: tuple[int, ...]


def check_files(datalist: Datalist, progress: ProgressCallback | None = None) -> Checked:
    """Read and check every file of the data list.

    Errors: files that are missing, unreadable or not CTs (an MRI, for example), label maps on another grid than their
    CT, labels that are not in the vocabulary or that the entry lists as ``unannotated``. Warnings: corrections made
    while reading, labels that a ``label_map`` leaves out, organs without voxels in the training group, and too few
    cases in a group.
    """
    errors: list[str] = []
    notes: list[str] = []
    omitted: list[dict[int, int]] = []
    voxels = np.zeros(len(datalist.vocabulary) + 1, np.int64)
    entries = [(group, entry) for group, listed in datalist.iter_groups() for entry in listed]
    for index, (group, entry) in enumerate(entries):
        try:
            counts = _check(entry, len(datalist.vocabulary), notes, omitted)
            if group == "training":
                voxels += counts
        except ImageError as error:
            errors.append(f"{group}: {error.problem}")
        if progress is not None:
            progress((index + 1) / len(entries), f"Reading {entry.image.name}")
    warnings = (*dict.fromkeys(notes), *describe_ignored_labels(omitted), *_find_warnings(datalist, voxels))
    return Checked(tuple(errors), warnings, tuple(int(count) for count in voxels))


def _check(entry: Entry, highest: int, notes: list[str], omitted: list[dict[int, int]]) -> np.ndarray:
    """Voxels of each label 0 to ``highest`` of the vocabulary. Labels that a label_map leaves out go to ``omitted``."""
    ct = read_ct(_require_file(entry.image), notes=notes)
    notes += [f"{entry.image.name}: {note}" for note in check_ct(ct)]
    if entry.label is None:
        return np.zeros(highest + 1, np.int64)
    labels = read_labels(_require_file(entry.label), notes)
    name = entry.label.name
    copy_geometry_if_close(labels, name, ct, entry.image.name, notes)
    if entry.label_map:
        omitted.append(count_ignored_labels(labels, entry.label_map))
    theirs = np.bincount(sitk.GetArrayViewFromImage(labels).ravel())
    counts = np.zeros(highest + 1, np.int64)
    for number, count in enumerate(theirs):
        ours = entry.label_map.get(number, 0) if entry.label_map else number
        if count and ours > highest:
            raise ImageError(
                f"{name} contains label {number}, but the vocabulary has only labels up to {highest}.",
                "Add a label_map.",
            )
        if ours <= highest:
            counts[ours] += count
    contradictory = [label for label in entry.unannotated if counts[label]]
    if contradictory:
        raise ImageError(
            f"{name} has voxels of label {contradictory[0]}, which is listed as unannotated.", "Correct the list."
        )
    return counts


def _require_file(path: Path) -> Path:
    if not exists(path):
        raise ImageError(f"There is no file {path}.", "Add the file, or correct the list.")
    return path


def _find_warnings(datalist: Datalist, voxels: np.ndarray) -> tuple[str, ...]:
    messages = []
    absent = [organ.name for organ in datalist.vocabulary if not voxels[organ.label]]
    if absent:
        messages.append(
            f"The labeled training cases have no voxels of: {', '.join(absent)}. These organs go to the tail group and "
            "cannot be learned."
        )
    if len(datalist.training) == 1:
        messages.append("There is only 1 labeled training case.")
    if not datalist.unlabeled:
        messages.append("There are no unlabeled cases, so the training is only supervised.")
    if not datalist.validation:
        messages.append("There are no validation cases, so the best weights cannot be selected.")
    return tuple(messages)


_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Built:
    """A data list, and ``caveats`` for the user."""

    datalist: Datalist
    caveats: tuple[str, ...]


def create_amos_datalist(folder: Path, split: str, with_mri: bool = False) -> Built:
    """Create the list of a published split of AMOS22.

    ``folder`` contains ``imagesTr``, ``labelsTr``, ``imagesVa`` and ``labelsVa``. Raises UserError if these folders or
    cases of the split are missing, or for an unknown split.
    """
    chosen = _split(splits.AMOS, split)
    training = _pair_by_number(folder / "imagesTr", folder / "labelsTr")
    test = _pair_by_number(folder / "imagesVa", folder / "labelsVa")
    caveats = list(chosen.caveats)
    labeled = set(chosen.labeled) - set(chosen.validation)
    if with_mri:
        caveats[0] = "The list contains ids above 500, as the published splits do. They are MRI and have no HU."
        allowed = {*training, *test}
    else:
        allowed = {number for number in (*training, *test) if number <= splits.LAST_CT_OF_AMOS}
    required = labeled | set(chosen.validation)
    if not with_mri:
        required = {number for number in required if number <= splits.LAST_CT_OF_AMOS}
    _require(required, training, folder / "imagesTr", "amos_{:04d}")
    datalist = Datalist(
        AMOS,
        training=_select_entries(training, labeled & allowed),
        unlabeled=_select_entries(training, (set(training) - labeled - set(chosen.validation)) & allowed),
        validation=_select_entries(training, set(chosen.validation) & allowed),
        test=_select_entries(test, set(test) & allowed),
        name=f"AMOS22, split {split}",
        licence="see the terms of AMOS22",
        source=f"AMOS22, https://amos22.grand-challenge.org; split: {chosen.source}",
    )
    return Built(datalist, tuple(caveats))


def create_synapse_datalist(folder: Path, split: str) -> Built:
    """Create the list of a published split of Synapse.

    ``folder`` is the training part with ``img`` and ``label``. Raises UserError if these folders or cases are missing,
    or for an unknown split.
    """
    chosen = _split(splits.SYNAPSE, split)
    cases = _pair_by_number(folder / "img", folder / "label")
    assert chosen.test is not None
    _require(splits.SYNAPSE_IDS, cases, folder / "img", "img{:04d}")
    unlabeled = set(splits.SYNAPSE_IDS) - set(chosen.labeled) - set(chosen.validation) - set(chosen.test)
    datalist = Datalist(
        SYNAPSE,
        training=_select_entries(cases, chosen.labeled),
        unlabeled=_select_entries(cases, unlabeled),
        validation=_select_entries(cases, chosen.validation),
        test=_select_entries(cases, chosen.test),
        name=f"Synapse (BTCV), split {split}",
        licence="see the terms of Synapse syn3193805",
        source=f"https://www.synapse.org/Synapse:syn3193805; split: {chosen.source}",
    )
    return Built(datalist, chosen.caveats)


def create_folder_datalist(
    folder: Path,
    vocabulary: Vocabulary,
    validation: int,
    test: int,
    labeled: int | None = None,
    seed: int = 0,
    name: str = "",
    licence: str = "not stated",
) -> Built:
    """Create the list of a folder of CTs.

    CTs are in ``images`` or ``imagesTr``; label maps with the same file names are in ``labels`` or ``labelsTr`` (apart
    from nnU-Net's suffix ``_0000`` of CTs). CTs without a label map are unlabeled. Of the labeled cases, ``validation``
    and ``test`` cases, drawn with ``seed``, are kept out of the training. With ``labeled``, only that number of the
    remaining cases keep their labels.

    Raises UserError if there is no folder of CTs, a label map has no CT, two files have the same name, or there are too
    few labeled cases.
    """
    images = _find_images(_find_subfolder(folder, "images", "imagesTr"))
    labels_folder = next((folder / each for each in ("labels", "labelsTr") if (folder / each).is_dir()), None)
    labels = {} if labels_folder is None else _find_images(labels_folder)
    orphans = sorted(set(labels) - set(images))
    if orphans:
        raise UserError(
            f"The label map {labels[orphans[0]].name} has no CT with the same name ({len(orphans)} in total).",
            "Give each CT and its label map the same file name.",
        )
    pairs = [Entry(images[stem], labels[stem]) for stem in sorted(labels)]
    without_labels = tuple(Entry(images[stem]) for stem in sorted(set(images) - set(labels)))
    if len(pairs) - validation - test < 1:
        number = "1 labeled CT" if len(pairs) == 1 else f"{len(pairs)} labeled CTs"
        raise UserError(
            f"{folder} has {number}. With {validation} for validation and {test} for testing, none is left.",
            "Label more CTs, or use smaller numbers (--validation, --test).",
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    shuffled = [pairs[index] for index in order]
    validation_pairs, test_pairs = shuffled[:validation], shuffled[validation : validation + test]
    training = shuffled[validation + test :]
    hidden: list[Entry] = [] if labeled is None else training[labeled:]
    training = training if labeled is None else training[:labeled]
    caveats = []
    if not without_labels and not hidden:
        caveats.append("There are no unlabeled CTs, so the training is only supervised.")
    if len(training) == 1:
        caveats.append("There is only 1 labeled case. A model trained on one person rarely works for others.")
    if not validation:
        caveats.append("There are no validation cases, so the best weights cannot be selected.")
    datalist = Datalist(
        vocabulary,
        training=_sort_entries(training),
        unlabeled=(*without_labels, *_sort_entries(hidden)),
        validation=_sort_entries(validation_pairs),
        test=_sort_entries(test_pairs),
        name=name or folder.absolute().name,
        licence=licence,
        source=f"own data; validation and test drawn with seed {seed}",
    )
    return Built(datalist, tuple(caveats))


def _split(known: dict[str, splits.Split], name: str) -> splits.Split:
    if name not in known:
        raise UserError(f"'{name}' is not a known split.", f"Choose one of: {', '.join(known)}.")
    return known[name]


def _find_subfolder(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"{folder} has no subfolder {' or '.join(names)}.", "Specify the folder that contains it.")


def _find_images(folder: Path) -> dict[str, Path]:
    """Images by file name without extension. Raises UserError if two have the same name."""
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        extension = next((each for each in _EXTENSIONS if path.name.lower().endswith(each)), None)
        if extension is None or path.name.startswith("."):
            continue
        stem = path.name[: -len(extension)].removesuffix("_0000")
        if stem in images:
            raise UserError(
                f"{images[stem].name} and {path.name} in {folder} have the same name.", "Keep only one of them."
            )
        images[stem] = path
    return images


def _pair_by_number(images: Path, labels: Path) -> dict[int, Entry]:
    """CTs and label maps by the last number in their names. Raises UserError if a folder is missing."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.", "Specify the folder of the unpacked download.")
    maps = {_number(stem): path for stem, path in _find_images(labels).items()}
    return {
        number: Entry(path, maps.get(number))
        for stem, path in _find_images(images).items()
        if (number := _number(stem)) is not None
    }


def _number(stem: str) -> int | None:
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def _require(required: Iterable[int], cases: dict[int, Entry], folder: Path, name: str) -> None:
    missing = sorted(number for number in required if number not in cases)
    if missing:
        count = "1 case" if len(missing) == 1 else f"{len(missing)} cases"
        raise UserError(
            f"{count} of the split not found in {folder}: {', '.join(map(name.format, missing[:4]))}.",
            "Download the missing files, or choose another split.",
        )
    unlabeled = sorted(number for number in required if cases[number].label is None)
    if unlabeled:
        raise UserError(f"{name.format(unlabeled[0])} has no label map.", "Download the label maps too.")


def _select_entries(cases: dict[int, Entry], numbers: Iterable[int]) -> tuple[Entry, ...]:
    return tuple(cases[number] for number in sorted(numbers) if number in cases)


def _sort_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.image))
