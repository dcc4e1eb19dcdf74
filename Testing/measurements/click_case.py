"""The case of a script that measures or draws clicks: a CT, its true labels, and the labels to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dcaseg.cli.option_values import load_bundle
from dcaseg.evaluation.scoring import read_table, remap_labels
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.inference.segmenter import Segmenter
from dcaseg.organs import AMOS


def script_parser(text: str | None, labels_required: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments of ``read_case``; ``text`` describes the script.

    ``labels_required``: the labels are the second argument; otherwise they are the option ``--labels``.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("labels" if labels_required else "--labels", type=Path)
    parser.add_argument("--label-table", type=Path)
    parser.add_argument("--start", type=Path, help="Labels to start from. Default: the result of the default model.")
    return parser


def read_case(chosen: argparse.Namespace) -> tuple[sitk.Image, sitk.Image, sitk.Image | None]:
    """The CT, the labels to start from, and the true labels, if there are any. Raises ImageError and UserError."""
    ct = read_ct(chosen.ct)
    start = (
        read_labels(chosen.start)
        if chosen.start
        else Segmenter(load_bundle(None), "cpu", backend="auto").segment(ct).labels
    )
    if chosen.labels is None:
        return ct, start, None
    labels = read_labels(chosen.labels)
    return ct, start, remap_labels(labels, read_table(chosen.label_table, AMOS)) if chosen.label_table else labels


def half_erased(organ: np.ndarray, axis: int) -> np.ndarray:
    """The mask ``organ`` (z, y, x) without its half at the higher indices of ``axis``."""
    where = np.argwhere(organ)
    kept = organ.copy()
    kept[tuple(where[where[:, axis] > np.median(where[:, axis])].T)] = False
    return kept
