"""Scores a model on unseen phantoms and on the labeled CTs of a data list."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, UserError, get_reason
from ..imaging.ct_checks import require_ct
from ..imaging.geometry import copy_geometry_if_close
from ..imaging.grid import Grid
from ..imaging.intensity import compute_value_range, count_ignored_labels, describe_ignored_labels
from ..imaging.readers import read_ct, read_labels
from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from ..organs import Vocabulary
from ..training.datalist import Entry, make_unique_names
from ..training.sources import TEST_SEEDS, draw_acquisition, scan_phantom
from ..types import ProgressCallback
from .metrics import DICE, POLICIES, TOLERANCE_MM, EmptyPolicy, Metric, measure
from .scores import Scores

# TotalSegmentator's names that differ by more than the position of the side.
_SYNONYMS = {
    "urinary_bladder": "bladder",
    "prostate": "prostate_uterus",
    "portal_vein_and_splenic_vein": "portal_and_splenic_vein",
}


def read_table(path: Path, vocabulary: Vocabulary) -> dict[int, int]:
    """Read which labels of a label map correspond to which labels of ``vocabulary``.

    ``path`` is a table with the columns ``id`` and ``name``, separated by tabs or commas. Names are the vocabulary's
    keys in any letter case, with the side first or last (``kidney_right``). Rows of other structures are ignored.
    Raises UserError if the file is not such a table or names no organ of the vocabulary.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = file.readline()
            file.seek(0)
            rows = list(csv.DictReader(file, delimiter="\t" if "\t" in head else ","))
        keys = {int(row["id"]): _normalize_name(row["name"]) for row in rows}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of labels ({get_reason(error)}).", "Specify a file with the columns id and name."
        ) from None
    labels = {label: vocabulary.by_key[key].label for label, key in keys.items() if key in vocabulary.by_key}
    if not labels:
        raise UserError(
            f"{path} names no organ of {vocabulary.name}.", f"Use these names: {', '.join(vocabulary.by_key)}."
        )
    return labels


def remap_labels(labels: sitk.Image, table: dict[int, int]) -> sitk.Image:
    """``labels`` in the vocabulary's numbers (uint8). Labels that are not in ``table`` become background."""
    array = sitk.GetArrayViewFromImage(labels)
    new = np.zeros(int(array.max()) + 1, np.uint8)
    for old, label in table.items():
        if 0 <= old < len(new):
            new[old] = label
    return Grid.from_image(labels).make_image(new[array])


def _normalize_name(name: str) -> str:
    key = "_".join(name.strip().lower().split())
    for side in ("left", "right"):
        if key.endswith(f"_{side}"):
            key = f"{side}_{key.removesuffix(f'_{side}')}"
    return _SYNONYMS.get(key, key)


@dataclass(frozen=True)
class ScoringOptions:
    """The metrics to compute and their options; see ``metrics.measure``."""

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
    scoring: ScoringOptions = ScoringOptions(),
) -> Scores:
    """Score ``count`` phantoms, each on the original grid of its CT.

    Seeds start at ``first_seed``; training and validation never draw the default ones. Spacing, phase and noise differ
    between phantoms.
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
    scoring: ScoringOptions = ScoringOptions(),
) -> dict[str, np.ndarray]:
    """Segment ``ct`` and score it against the label map ``truth`` on the same grid: scores (K,) by metric key."""
    return score_labels(segmenter.segment(ct, options).labels, truth, len(segmenter.vocabulary), scoring)


def score_labels(
    predicted: sitk.Image,
    truth: sitk.Image,
    n_labels: int,
    scoring: ScoringOptions = ScoringOptions(),
) -> dict[str, np.ndarray]:
    """Score one label map against another on the same grid: scores (K,) by metric key."""
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
    """Read the CT of a labeled entry, and its label map in the vocabulary's numbers.

    Raises ImageError if the image is not a CT, the grids differ, or the label map has unknown labels.
    """
    assert entry.label is not None
    ct, truth = read_ct(entry.image), read_labels(entry.label)
    require_ct(ct, entry.image.name)
    require_one_grid(truth, entry.label, ct, entry.image)
    if entry.label_map:
        for note in describe_ignored_labels([count_ignored_labels(truth, entry.label_map)]):
            _log.warning("%s: %s", entry.label.name, note)
        truth = remap_labels(truth, dict(entry.label_map))
    require_known(truth, entry.label, vocabulary)
    return ct, truth


def score_entries(
    scores: Scores,
    segmenter: Segmenter,
    entries: Sequence[Entry],
    options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    scoring: ScoringOptions = ScoringOptions(),
    progress: ProgressCallback | None = None,
) -> None:
    """Add the scores of labeled entries to ``scores``. Unannotated organs of an entry do not count."""
    names = make_unique_names([entry.image for entry in entries])
    for index, entry in enumerate(entries):
        if progress is not None:
            progress(index / len(entries), f"CT {index + 1} of {len(entries)}")
        ct, truth = read_entry(entry, scores.vocabulary)
        found = score_case(segmenter, ct, truth, options, scoring)
        for values in found.values():
            values[[label - 1 for label in entry.unannotated]] = np.nan
        scores.add(names[index], found)


def require_one_grid(labels: sitk.Image, path: Path, other: sitk.Image, other_path: Path) -> None:
    """Raise ImageError if two images are not on the same grid. Rounding differences of ``labels`` are corrected."""
    copy_geometry_if_close(labels, path.name, other, other_path.name)


def require_known(labels: sitk.Image, path: Path, vocabulary: Vocabulary) -> None:
    """Raise ImageError if a label map has labels that ``vocabulary`` does not have."""
    highest = int(compute_value_range(labels)[1])
    if highest > len(vocabulary):
        raise ImageError(
            f"{path.name} contains label {highest}, but the highest label of {vocabulary.name} is {len(vocabulary)}.",
            "Use label maps with the model's numbers (dca bundle info), or a list with label_map.",
        )
