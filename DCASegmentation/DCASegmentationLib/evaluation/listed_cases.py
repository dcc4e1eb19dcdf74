"""The labelled CTs of a list, read and checked, and how well a model finds the organs in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..imaging.ct_check import check_ct
from ..imaging.geometry import lay_over
from ..imaging.reading import read_ct, read_labels
from ..imaging.voxels import left_out, told_left_out, value_range
from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from ..organs import Vocabulary
from ..training.datalist import Entry
from .label_tables import translated
from .phantom_test import Scoring, score_case
from .scores import Scores

Progress = Callable[[float, str], None]
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
    scoring: Scoring = Scoring(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> None:
    """Add the scores of labelled entries to ``scores``; organs that an entry says are unknown in it do not count."""
    for index, entry in enumerate(entries):
        if progress is not None:
            progress(index / len(entries), f"CT {index + 1} of {len(entries)}")
        ct, truth = read_entry(entry, scores.vocabulary)
        found = score_case(segmenter, ct, truth, options, scoring)
        for values in found.values():
            values[[label - 1 for label in entry.unknown]] = np.nan
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
