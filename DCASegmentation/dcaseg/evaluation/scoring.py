"""How well a model finds the organs of unseen phantoms and of the labelled CTs of a list."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, UserError
from ..imaging.ct_checks import check_ct
from ..imaging.geometry import lay_over
from ..imaging.grid import Grid
from ..imaging.intensity import left_out, told_left_out, value_range
from ..imaging.readers import read_ct, read_labels
from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from ..organs import Vocabulary
from ..training.datalist import Entry
from ..training.sources import TEST_SEEDS, draw_acquisition, scan_phantom
from ..types import ProgressCallback
from .metrics import DICE, POLICIES, TOLERANCE_MM, EmptyPolicy, Metric, measure
from .scores import Scores

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


@dataclass(frozen=True)
class Scoring:
    """By what a label map is scored; see ``metrics.measure``."""

    metrics: tuple[Metric, ...] = (DICE,)
    policy: EmptyPolicy = POLICIES["leave_out"]
    tolerance_mm: float = TOLERANCE_MM


def score_on_phantoms(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    count: int,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    first_seed: int = TEST_SEEDS,
    progress: ProgressCallback | None = None,
    scoring: Scoring = Scoring(),
) -> Scores:
    """Scores on ``count`` phantoms, each on its CT's own grid.

    The people start at ``first_seed``, which training and validation never draw; spacing, phase and noise differ
    from person to person.
    """
    scores = Scores(vocabulary, scoring.metrics)
    for index in range(count):
        seed = first_seed + index
        phantom = scan_phantom(seed)
        scores.add(
            f"phantom {seed} ({draw_acquisition(seed).phase})",
            score_case(segmenter, phantom.ct, phantom.labels, options, scoring),
        )
        if progress is not None:
            progress((index + 1) / count, f"Phantom {index + 1} of {count}")
    return scores


def score_case(
    segmenter: Segmenter,
    ct: sitk.Image,
    truth: sitk.Image,
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    scoring: Scoring = Scoring(),
) -> dict[str, np.ndarray]:
    """Scores (K,) by metric of the segmentation of ``ct`` against the label map ``truth`` on the same grid."""
    return score_labels(segmenter.segment(ct, options).labels, truth, len(segmenter.vocabulary), scoring)


def score_labels(
    predicted: sitk.Image,
    truth: sitk.Image,
    n_labels: int,
    scoring: Scoring = Scoring(),
) -> dict[str, np.ndarray]:
    """Scores (K,) by metric of one label map against another on the same grid."""
    x, y, z = truth.GetSpacing()
    return measure(
        sitk.GetArrayViewFromImage(predicted),
        sitk.GetArrayViewFromImage(truth),
        (z, y, x),
        n_labels,
        scoring.metrics,
        scoring.policy,
        scoring.tolerance_mm,
    )


_log = logging.getLogger(__name__)


def read_entry(entry: Entry, vocabulary: Vocabulary) -> tuple[sitk.Image, sitk.Image]:
    """The CT of a labelled entry and its label map in the vocabulary's numbers. Raises ImageError for what cannot be
    used: no CT, another grid, unknown labels."""
    assert entry.label is not None
    ct, truth = read_ct(entry.image), read_labels(entry.label)
    check_ct(ct)
    require_one_grid(truth, entry.label, ct, entry.image)
    if entry.label_map:
        for note in told_left_out([left_out(truth, entry.label_map)]):
            _log.warning("%s: %s", entry.label.name, note)
        truth = translated(truth, dict(entry.label_map))
    require_known(truth, entry.label, vocabulary)
    return ct, truth


def score_entries(
    scores: Scores,
    segmenter: Segmenter,
    entries: Sequence[Entry],
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    scoring: Scoring = Scoring(),
    progress: ProgressCallback | None = None,
) -> None:
    """Add the scores of labelled entries to ``scores``; organs that an entry says are unknown in it do not count."""
    for index, entry in enumerate(entries):
        if progress is not None:
            progress(index / len(entries), f"CT {index + 1} of {len(entries)}")
        ct, truth = read_entry(entry, scores.vocabulary)
        found = score_case(segmenter, ct, truth, options, scoring)
        for values in found.values():
            values[[label - 1 for label in entry.unannotated]] = np.nan
        scores.add(entry.image.name, found)


def require_one_grid(labels: sitk.Image, path: Path, other: sitk.Image, other_path: Path) -> None:
    """Raises ImageError where two images do not lie on one grid; differences by rounding are put right."""
    lay_over(labels, path.name, other, other_path.name)


def require_known(labels: sitk.Image, path: Path, vocabulary: Vocabulary) -> None:
    """Raises ImageError where a label map has labels that the vocabulary does not."""
    highest = int(value_range(labels)[1])
    if highest > len(vocabulary):
        raise ImageError(
            f"{path.name} holds label {highest}, but {vocabulary.name} ends at {len(vocabulary)}.",
            "Give label maps in the model's numbers (dca bundle info), or a list with label_map.",
        )
