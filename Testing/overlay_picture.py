"""Draw the labeled CTs of a list with their labels and the result of a model, as in Docs/measurements/models.md.

Run: python Testing/overlay_picture.py LIST PICTURE [--group validation] [--bundle MODEL] [--labels "Whose labels"]

LIST is a data list (``dca dataset``). ``--labels`` is the title of the labels, which should say who made them. Dice is
that of ``dca evaluate``, on the CT's own grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dcaseg.cli.option_values import get_labeled_entries, load_bundle
from dcaseg.evaluation.figures.overlays import CaseResults, plot_overlays
from dcaseg.evaluation.figures.style import save_figure
from dcaseg.evaluation.scoring import read_entry, score_labels
from dcaseg.imaging.grid import make_model_grid
from dcaseg.imaging.resampling import resample
from dcaseg.inference.segmenter import Segmenter
from dcaseg.training.datalist import Entry

_SHOWN_MM = (3.0, 3.0, 3.0)


def draw(data: Path, group: str, bundle: str | None, labels: str, picture: Path) -> None:
    """Segment the labeled CTs of a group, and draw each in two planes. Raises UserError."""
    model = load_bundle(bundle)
    segmenter = Segmenter(model, "cpu", backend="auto")
    cases = [_case(entry, segmenter, model.metadata.name) for entry in get_labeled_entries([], [], data, group)]
    title = "A CT of a patient, not trained on" if len(cases) == 1 else "CTs of patients, not trained on"
    save_figure(plot_overlays(cases, model.metadata.vocabulary, title, labels), picture)


def _case(entry: Entry, segmenter: Segmenter, model: str) -> CaseResults:
    ct, truth = read_entry(entry, segmenter.vocabulary)
    found = segmenter.segment(ct).labels
    dice = score_labels(found, truth, len(segmenter.vocabulary))["dice"]
    dice[[label - 1 for label in entry.unannotated]] = np.nan
    grid = make_model_grid(ct, _SHOWN_MM)
    shown = [sitk.GetArrayFromImage(resample(image, grid, "nearest")) for image in (truth, found)]
    hu = sitk.GetArrayFromImage(resample(ct, grid))
    x, y, z = grid.spacing
    return CaseResults("", hu, shown[0], {model: shown[1]}, {model: float(np.nanmean(dice))}, (z, y, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="LIST")
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--group", default="validation")
    parser.add_argument("--bundle")
    parser.add_argument("--labels", default="Truth")
    chosen = parser.parse_args()
    draw(chosen.data, chosen.group, chosen.bundle, chosen.labels, chosen.picture)


if __name__ == "__main__":
    main()
