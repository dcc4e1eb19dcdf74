"""Data lists of public data sets and of ordinary folders, their published splits, and a check of their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, UserError
from ..imaging.ct_checks import check_ct
from ..imaging.geometry import lay_over
from ..imaging.intensity import left_out, told_left_out
from ..imaging.readers import read_ct, read_labels
from ..organs import AMOS, SYNAPSE, Vocabulary
from ..types import ProgressCallback
from . import published_splits as splits
from .datalist import Datalist, Entry


@dataclass(frozen=True)
class Checked:
    """``errors`` keep the list from being trained on, ``warnings`` do not; ``voxels`` are those of each label 0 to K
    in the training group's label maps."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    voxels: tuple[int, ...]


def check_files(datalist: Datalist, progress: ProgressCallback | None = None) -> Checked:
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
    told = [label for label in entry.unannotated if counts[label]]
    if told:
        raise ImageError(f"{name} has voxels of label {told[0]}, which is listed as unannotated.", "Correct the list.")
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


_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Built:
    """A list, and what is to be known about it."""

    datalist: Datalist
    caveats: tuple[str, ...]


def amos(folder: Path, split: str, with_mri: bool = False) -> Built:
    """The list of a split of AMOS22 from its folder (``imagesTr``, ``labelsTr``, ``imagesVa``, ``labelsVa``).

    Raises UserError for another folder, an unknown split, or cases of the split that are missing.
    """
    chosen = _split(splits.AMOS, split)
    training = _numbered(folder / "imagesTr", folder / "labelsTr")
    test = _numbered(folder / "imagesVa", folder / "labelsVa")
    caveats = list(chosen.caveats)
    labelled = set(chosen.labelled) - set(chosen.validation)
    if with_mri:
        caveats[0] = "Ids above 500 are MRI and are in the list, as in the published splits; they have no HU."
        allowed = {*training, *test}
    else:
        allowed = {number for number in (*training, *test) if number <= splits.LAST_CT_OF_AMOS}
    wanted = labelled | set(chosen.validation)
    if not with_mri:
        wanted = {number for number in wanted if number <= splits.LAST_CT_OF_AMOS}
    _require(wanted, training, folder / "imagesTr", "amos_{:04d}")
    datalist = Datalist(
        AMOS,
        training=_chosen(training, labelled & allowed),
        unlabelled=_chosen(training, (set(training) - labelled - set(chosen.validation)) & allowed),
        validation=_chosen(training, set(chosen.validation) & allowed),
        test=_chosen(test, set(test) & allowed),
        name=f"AMOS22, split {split}",
        licence="see the terms of AMOS22",
        source=f"AMOS22, https://amos22.grand-challenge.org; split: {chosen.source}",
    )
    return Built(datalist, tuple(caveats))


def synapse(folder: Path, split: str) -> Built:
    """The list of a split of Synapse from the folder of its training part (``img``, ``label``).

    Raises UserError for another folder, an unknown split, or cases that are missing.
    """
    chosen = _split(splits.SYNAPSE, split)
    cases = _numbered(folder / "img", folder / "label")
    assert chosen.test is not None
    _require(splits.SYNAPSE_IDS, cases, folder / "img", "img{:04d}")
    rest = set(splits.SYNAPSE_IDS) - set(chosen.labelled) - set(chosen.validation) - set(chosen.test)
    datalist = Datalist(
        SYNAPSE,
        training=_chosen(cases, chosen.labelled),
        unlabelled=_chosen(cases, rest),
        validation=_chosen(cases, chosen.validation),
        test=_chosen(cases, chosen.test),
        name=f"Synapse (BTCV), split {split}",
        licence="see the terms of Synapse syn3193805",
        source=f"https://www.synapse.org/Synapse:syn3193805; split: {chosen.source}",
    )
    return Built(datalist, chosen.caveats)


def folder_of_cts(
    folder: Path,
    vocabulary: Vocabulary,
    validation: int,
    test: int,
    labelled: int | None = None,
    seed: int = 0,
    name: str = "",
    licence: str = "not stated",
) -> Built:
    """The list of a folder of one's own.

    CTs lie in ``images`` or ``imagesTr``, label maps of the same file name in ``labels`` or ``labelsTr`` (nnU-Net's
    ``_0000`` of a CT does not count). CTs without a label map are unlabelled. Of the labelled ones, drawn by ``seed``,
    ``validation`` and ``test`` are kept out of the training; ``labelled`` uses the labels of so many only.

    Raises UserError for another folder, a label map without CT, two files of one name, or too few labelled cases.
    """
    images = _stems(_first(folder, "images", "imagesTr"))
    labels_folder = next((folder / each for each in ("labels", "labelsTr") if (folder / each).is_dir()), None)
    labels = {} if labels_folder is None else _stems(labels_folder)
    orphans = sorted(set(labels) - set(images))
    if orphans:
        raise UserError(
            f"The label map {labels[orphans[0]].name} has no CT of its name ({len(orphans)} such).",
            "Give both the same file name.",
        )
    pairs = [Entry(images[stem], labels[stem]) for stem in sorted(labels)]
    others = tuple(Entry(images[stem]) for stem in sorted(set(images) - set(labels)))
    if len(pairs) - validation - test < 1:
        raise UserError(
            f"{folder} has {len(pairs)} labelled CTs; {validation} to validate and {test} to test on leave none.",
            "Label more, or ask for fewer (--validation, --test).",
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    drawn = [pairs[index] for index in order]
    kept, tested = drawn[:validation], drawn[validation : validation + test]
    training = drawn[validation + test :]
    hidden: list[Entry] = [] if labelled is None else training[labelled:]
    training = training if labelled is None else training[:labelled]
    caveats = []
    if not others and not hidden:
        caveats.append("There is no unlabelled CT: the training is supervised alone.")
    if len(training) == 1:
        caveats.append("One labelled case: what is learned is this one person's; expect little of it.")
    if not validation:
        caveats.append("No case to validate on: no best weights are chosen.")
    datalist = Datalist(
        vocabulary,
        training=_sorted(training),
        unlabelled=(*others, *_sorted(hidden)),
        validation=_sorted(kept),
        test=_sorted(tested),
        name=name or folder.absolute().name,
        licence=licence,
        source=f"own data; validation and test drawn with seed {seed}",
    )
    return Built(datalist, tuple(caveats))


def _split(known: dict[str, splits.Split], name: str) -> splits.Split:
    if name not in known:
        raise UserError(f"There is no split '{name}'.", f"Choose one of: {', '.join(known)}.")
    return known[name]


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"{folder} has no folder {' or '.join(names)}.", "Name the folder that holds it.")


def _stems(folder: Path) -> dict[str, Path]:
    """Images by file name without extension. Raises UserError for two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        extension = next((one for one in _EXTENSIONS if path.name.lower().endswith(one)), None)
        if extension is None or path.name.startswith("."):
            continue
        stem = path.name[: -len(extension)].removesuffix("_0000")
        if stem in found:
            raise UserError(f"{found[stem].name} and {path.name} in {folder} have one name.", "Keep one of them.")
        found[stem] = path
    return found


def _numbered(images: Path, labels: Path) -> dict[int, Entry]:
    """CTs and label maps by the last number in their names. Raises UserError where a folder is missing."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.", "Name the folder as it was downloaded and unpacked.")
    maps = {_number(stem): path for stem, path in _stems(labels).items()}
    return {
        number: Entry(path, maps.get(number))
        for stem, path in _stems(images).items()
        if (number := _number(stem)) is not None
    }


def _number(stem: str) -> int | None:
    numbers = re.findall(r"\d+", stem)
    return int(numbers[-1]) if numbers else None


def _require(wanted: Iterable[int], cases: dict[int, Entry], folder: Path, name: str) -> None:
    missing = sorted(number for number in wanted if number not in cases)
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} cases of the split: {', '.join(map(name.format, missing[:4]))}.",
            "Download the missing files, or choose another split.",
        )
    unlabelled = sorted(number for number in wanted if cases[number].label is None)
    if unlabelled:
        raise UserError(f"{name.format(unlabelled[0])} has no label map.", "Download the label maps too.")


def _chosen(cases: dict[int, Entry], numbers: Iterable[int]) -> tuple[Entry, ...]:
    return tuple(cases[number] for number in sorted(numbers) if number in cases)


def _sorted(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.image))
