"""``dca evaluate-review``: whether the findings lead to what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .bundle import load
from .console import Report, progress_bar, say, show, table
from .evaluate import labelled_entries
from .option_values import DeviceOption

if TYPE_CHECKING:
    from ..evaluation.review_evaluation import ReviewMeasurement
    from ..inference.segmenter import Segmenter
    from ..training.datalist import Entry

NAME = "evaluate-review"
EXAMPLES = "Example: dca evaluate-review --phantoms 12 -o reach/"

# By this file an earlier folder is known.
_SUMMARY = "reach.json"
_USUAL_PHANTOMS = 12


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make: reach.csv, reach.json, reach.png.")],
    bundle: Annotated[str | None, typer.Option(help="Folder or name of the model. Else the default one.")] = None,
    phantoms: Annotated[
        int | None, typer.Option(min=1, help="So many synthetic people unlike the training's. 12 unless --ct is given.")
    ] = None,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="The people on which the scoring was chosen, not those for reporting.")
    ] = False,
    ct: Annotated[Path | None, typer.Option(help="A labelled CT of your own instead.")] = None,
    labels: Annotated[Path | None, typer.Option(help="The label map of that CT.")] = None,
    label_table: Annotated[
        Path | None, typer.Option(help="Table (columns id and name) of that label map, if its numbers are others.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Or the labelled cases of a list (dca dataset); see --group.")
    ] = None,
    group: Annotated[str, typer.Option(help="Which cases of the list: test, validation or training.")] = "test",
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier run.")] = False,
) -> None:
    """Measure which share of the errors lies in the first 5, 10 and 20 findings.

    Beside the review's own order: the same places at random, by size and by entropy, and places made of the entropy
    alone, all cut into places of the same size. On synthetic people with thicker slices, more noise, other contrast and
    missing organs than in training, or on labelled CTs. Where labels come from another network, this is agreement with
    that network.
    """
    from ..evaluation.figures.curves import review_curve
    from ..evaluation.review_evaluation import REPORT_SEEDS, TUNING_SEEDS, ReviewMeasurement, measure_on_phantoms
    from ..imaging.writers import new_folder, write_json
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter

    if (ct is None) != (labels is None):
        raise UserError("A CT and its label map go together.", "Give both --ct and --labels.")
    if (ct is not None) + (data is not None) + (phantoms is not None or tuning) > 1:
        raise UserError("Phantoms, a CT of your own and a list are measured apart.", "Give --phantoms, --ct or --data.")
    if label_table is not None and labels is None:
        raise UserError("--label-table is for --labels.", "Give --ct and --labels too.")
    entries = labelled_entries([], [], data, group)
    keep_freed_memory()
    model = load(bundle)
    segmenter = Segmenter(model, device, runtime="auto")
    measured = ReviewMeasurement()
    first_seed = TUNING_SEEDS if tuning else REPORT_SEEDS
    with new_folder(out, overwrite, recognized_by=_SUMMARY) as folder:
        with progress_bar() as progress:
            if ct is not None and labels is not None:
                _add_own(measured, segmenter, ct, labels, label_table)
                told = ct.name
            elif data is not None:
                _add_entries(measured, segmenter, entries, progress)
                told = f"{group} cases of {data.name}"
            else:
                count = phantoms or _USUAL_PHANTOMS
                measure_on_phantoms(measured, segmenter, count, first_seed, progress)
                told = f"{count} synthetic people from seed {first_seed}"
        measured.write_csv(folder / "reach.csv")
        weights = model.metadata.weights.sha256
        about = {"data": told, "model": {"name": model.metadata.name, "sha256": weights}}
        write_json({**about, **measured.to_json()}, folder / _SUMMARY)
        review_curve(measured, f"{model.metadata.name}: {told}").savefig(folder / "reach.png", dpi=120)
    _print(measured, f"{model.metadata.name}: {told}")
    say(f"Written: {out}")


def _add_own(
    measured: ReviewMeasurement, segmenter: Segmenter, ct_path: Path, labels_path: Path, label_table: Path | None
) -> None:
    from ..evaluation.review_evaluation import add_case
    from ..evaluation.scoring import read_table, require_one_grid, translated
    from ..imaging.ct_checks import check_ct
    from ..imaging.readers import read_ct, read_labels

    ct, truth = read_ct(ct_path), read_labels(labels_path)
    check_ct(ct)
    require_one_grid(truth, labels_path, ct, ct_path)
    known = None
    if label_table is not None:
        names = read_table(label_table, segmenter.vocabulary)
        truth, known = translated(truth, names), tuple(sorted(set(names.values())))
    add_case(measured, segmenter, ct_path.name, ct, truth, known)


def _add_entries(measured: ReviewMeasurement, segmenter: Segmenter, entries: list[Entry], progress: Report) -> None:
    from ..evaluation.review_evaluation import add_case
    from ..evaluation.scoring import read_entry

    for index, entry in enumerate(entries):
        progress(index / len(entries), f"CT {index + 1} of {len(entries)}")
        ct, truth = read_entry(entry, segmenter.vocabulary)
        known = [label for label in segmenter.vocabulary.by_label if label not in entry.unannotated]
        add_case(measured, segmenter, f"{entry.image.parent.name}/{entry.image.name}", ct, truth, known)


def _print(measured: ReviewMeasurement, title: str) -> None:
    from ..evaluation.review_evaluation import FIRST, ORDERS

    columns = ("Places", "ml", "Errors", "Gross errors", "Organs", "Errors, same ml", "Gross, same ml")
    shown = table(f"{title}: reached, mean of {len(measured.cases)} cases", "Order", *columns, numbers=columns)
    for first in FIRST:
        for order in ORDERS:
            mean = measured.mean(order, first)
            shares = ("errors", "gross", "organs", "same_ml_errors", "same_ml_gross")
            shown.add_row(order, str(first), f"{mean['ml']:.0f}", *(_share(mean[name]) for name in shares))
        shown.add_section()
    show(shown)


def _share(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "-"
