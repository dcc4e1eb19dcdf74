"""CTs and label maps where the public data sets, and ordinary folders, keep them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...organs import AMOS, SYNAPSE, Vocabulary
from ..datalist import Datalist, Entry
from . import splits

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
