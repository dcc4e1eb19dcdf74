"""``dca evaluate-review``: measure whether the findings lead to the errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..types import ProgressCallback
from .console import make_table, print_line, print_table, progress_bar
from .field_options import expand
from .option_values import get_labeled_entries, load_bundle
from .options import CASES_PANEL, BundleOption, DeviceOption, LabeledCTGroup, overwrite_option

if TYPE_CHECKING:
    from ..evaluation.review_evaluation import ReviewMeasurement
    from ..inference.segmenter import Segmenter
    from ..training.datalist import Entry

NAME = "evaluate-review"
EXAMPLES = "Example: dca evaluate-review --phantoms 12 -o reach/"

# --overwrite replaces only folders that contain this file.
_SUMMARY = "reach.json"
_DEFAULT_PHANTOMS = 12


@expand
def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for reach.csv, reach.json and reach.png.")],
    *,
    bundle: BundleOption = None,
    phantoms: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of phantoms that differ from those in training. Default: 12, if no other cases are given.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = None,
    tuning: Annotated[
        bool,
        typer.Option(
            "--tuning",
            help="Use the phantoms on which the ranking was tuned, not those for reporting.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = False,
    own: LabeledCTGroup,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier run")] = False,
) -> None:
    """Measure the fraction of errors in the first 5, 10 and 20 findings.

    The order of the review is compared with a random order, with orders by size and by entropy, and with findings made
    from the entropy alone. All findings have the same maximum size. Cases are phantoms with thicker slices, more noise
    and different contrast than in training and with missing organs, or labeled CTs. If the labels come from another
    network, the result measures the agreement with that network.
    """
    from ..evaluation.figures.curves import plot_review_curve
    from ..evaluation.review_evaluation import REPORT_SEEDS, TUNING_SEEDS, ReviewMeasurement, measure_on_phantoms
    from ..imaging.writers import new_folder, write_json
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter

    if (own.ct is not None) + (own.data is not None) + (phantoms is not None or tuning) > 1:
        raise UserError(
            "Phantoms, your own CT and a list cannot be combined.", "Specify only one of --phantoms, --ct and --data."
        )
    entries = get_labeled_entries([], [], own.data, own.group)
    keep_freed_memory()
    model = load_bundle(bundle)
    segmenter = Segmenter(model, device, backend="auto")
    measured = ReviewMeasurement()
    first_seed = TUNING_SEEDS if tuning else REPORT_SEEDS
    with new_folder(out, overwrite, recognized_by=_SUMMARY) as folder:
        with progress_bar() as progress:
            if own.ct is not None and own.labels is not None:
                _add_own_ct(measured, segmenter, own.ct, own.labels, own.label_table)
                data_name = own.ct.name
            elif own.data is not None:
                _add_entries(measured, segmenter, entries, progress)
                data_name = f"{own.group} cases of {own.data.name}"
            else:
                count = phantoms or _DEFAULT_PHANTOMS
                measure_on_phantoms(measured, segmenter, count, first_seed, progress)
                data_name = f"{count} phantom{'s' if count != 1 else ''} from seed {first_seed}"
        measured.write_csv(folder / "reach.csv")
        weights = model.metadata.weights.sha256
        summary = {"data": data_name, "model": {"name": model.metadata.name, "sha256": weights}}
        write_json({**summary, **measured.to_json()}, folder / _SUMMARY)
        plot_review_curve(measured, f"{model.metadata.name}: {data_name}").savefig(folder / "reach.png", dpi=120)
    _print(measured, f"{model.metadata.name}: {data_name}")
    print_line(f"Written: {out}")


def _add_own_ct(
    measured: ReviewMeasurement, segmenter: Segmenter, ct_path: Path, labels_path: Path, label_table: Path | None
) -> None:
    from ..evaluation.review_evaluation import add_case
    from ..evaluation.scoring import read_table, remap_labels, require_one_grid
    from ..imaging.ct_checks import require_ct
    from ..imaging.readers import read_ct, read_labels

    ct, truth = read_ct(ct_path), read_labels(labels_path)
    require_ct(ct, ct_path.name)
    require_one_grid(truth, labels_path, ct, ct_path)
    known = None
    if label_table is not None:
        names = read_table(label_table, segmenter.vocabulary)
        truth, known = remap_labels(truth, names), tuple(sorted(set(names.values())))
    add_case(measured, segmenter, ct_path.name, ct, truth, known)


def _add_entries(
    measured: ReviewMeasurement, segmenter: Segmenter, entries: list[Entry], progress: ProgressCallback
) -> None:
    from ..evaluation.review_evaluation import add_case
    from ..evaluation.scoring import read_entry

    for index, entry in enumerate(entries):
        progress(index / len(entries), f"CT {index + 1} of {len(entries)}")
        ct, truth = read_entry(entry, segmenter.vocabulary)
        known = [label for label in segmenter.vocabulary.by_label if label not in entry.unannotated]
        add_case(measured, segmenter, f"{entry.image.parent.name}/{entry.image.name}", ct, truth, known)


def _print(measured: ReviewMeasurement, title: str) -> None:
    from ..evaluation.review_evaluation import FIRST, ORDERS

    columns = ("Findings", "ml", "Errors", "Gross errors", "Organs", "Errors, same ml", "Gross, same ml")
    count = f"{len(measured.cases)} case{'s' if len(measured.cases) != 1 else ''}"
    rows = make_table(f"{title}: found errors, mean of {count}", "Order", *columns, numbers=columns)
    for first in FIRST:
        for order in ORDERS:
            mean = measured.mean(order, first)
            fractions = ("errors", "gross", "organs", "same_ml_errors", "same_ml_gross")
            rows.add_row(order, str(first), f"{mean['ml']:.0f}", *(_format_percent(mean[name]) for name in fractions))
        rows.add_section()
    print_table(rows)
    error = measured.calibration.expected_error
    if math.isfinite(error):
        print_line(f"Expected calibration error of the error probability: {error:.3f}")


def _format_percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "-"
