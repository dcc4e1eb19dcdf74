"""``dca evaluate-clicks``: how much simulated clicks improve the result of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .console import make_table, print_line, print_table, progress_bar
from .field_options import expand
from .option_values import get_labeled_entries, load_bundle, parse_list
from .options import CASES_PANEL, BundleOption, DeviceOption, LabeledCTGroup, overwrite_option

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..evaluation.click_simulation import ClickMeasurement
    from ..inference.segmenter import Segmenter
    from ..training.datalist import Entry

NAME = "evaluate-clicks"
EXAMPLES = "Example: dca evaluate-clicks --phantoms 4 --engines classifier,brush -o clicks/"

# --overwrite replaces only folders that contain this file.
_SUMMARY = "clicks.json"
_DEFAULT_PHANTOMS = 4


@expand
def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for clicks.csv, clicks.json and clicks.png.")],
    *,
    bundle: BundleOption = None,
    engines: Annotated[
        str,
        typer.Option(
            help="Engines, separated by commas: classifier, random_walker (without the classifier), "
            "seeded_random_walker, brush, auto (the default of dca correct), or names or folders of click networks."
        ),
    ] = "classifier,random_walker,brush",
    clicks: Annotated[int, typer.Option(min=1, max=10, help="Maximum number of clicks per organ.")] = 10,
    missing: Annotated[
        bool, typer.Option("--missing", help="Remove each organ from the result before its first click.")
    ] = False,
    phantoms: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of phantoms that differ from those in training. Default: 4, if no other cases are given.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = None,
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(
            "--synthetic",
            help="Folder made by dca synthesize. Can be repeated.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = None,
    own: LabeledCTGroup,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier run")] = False,
) -> None:
    """Measure correction with simulated clicks, starting from the result of a model.

    Each click is at the center of the organ's largest error. The table shows Dice by number of clicks, the number of
    clicks to reach Dice 0.85 and 0.90 (NoC; failures count as --clicks), the time, and the fraction of clicks that
    lower Dice. Cases are phantoms with thicker slices, more noise and different contrast than in training, synthetic
    CTs made by **dca synthesize**, or labeled CTs. If the labels come from another network, Dice measures the
    agreement with that network.
    """
    from ..evaluation.click_simulation import BallBrush, ClickMeasurement, measure_case
    from ..evaluation.figures.curves import plot_click_curve
    from ..imaging.writers import new_folder, write_json
    from ..inference.options import SegmentOptions
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter
    from ..interaction.engines import create_engine

    chosen = [BallBrush() if name == BallBrush.name else create_engine(name) for name in parse_list(engines)]
    if not chosen:
        raise UserError("No engine was given.", "Example: --engines classifier.")
    entries = get_labeled_entries([], [], own.data, own.group)
    if not (entries or synthetic or own.ct is not None or phantoms):
        phantoms = _DEFAULT_PHANTOMS
    keep_freed_memory()
    model = load_bundle(bundle)
    segmenter = Segmenter(model, device, backend="auto")
    measured = ClickMeasurement(clicks=clicks)
    cases: list[str] = []
    with new_folder(out, overwrite, recognized_by=_SUMMARY) as folder:
        with progress_bar() as progress:
            for name, image, truth, known in _load_cases(segmenter, phantoms or 0, synthetic or [], entries, own):
                progress(0.0, f"{name}: segmenting")
                start = segmenter.segment(image, SegmentOptions()).labels
                measure_case(
                    *(measured, name, image, start, truth, segmenter.vocabulary, chosen, known, progress),
                    missing=missing,
                )
                cases.append(name)
        if not measured.courses:
            raise UserError(
                "The label maps contain no organ of the model.",
                "Use its label values (see dca bundle info), or --label-table.",
            )
        summary = {"cases": cases, "model": {"name": model.metadata.name, "sha256": model.metadata.weights.sha256}}
        write_json({**summary, "clicks": clicks, "missing": missing, "engines": measured.to_json()}, folder / _SUMMARY)
        measured.write_csv(folder / "clicks.csv")
        title = f"{model.metadata.name}: {', '.join(cases)}"
        plot_click_curve(measured, title if len(title) < 100 else f"{title[:97]}...").savefig(
            folder / "clicks.png", dpi=120
        )
    _print(measured)
    print_line(f"Written: {out}")


def _load_cases(
    segmenter: Segmenter,
    phantoms: int,
    synthetic: list[Path],
    entries: list[Entry],
    own: LabeledCTGroup,
) -> Iterator[tuple[str, sitk.Image, sitk.Image, list[int] | None]]:
    """Yield the name, CT, truth and annotated labels (None: all) of each case. Of ``own``, ``entries`` are the list."""
    from ..evaluation.review_evaluation import REPORT_SEEDS, generate_shifted_scan_phantom
    from ..evaluation.scoring import read_entry, read_table, remap_labels, require_known, require_one_grid
    from ..imaging.ct_checks import require_ct
    from ..imaging.readers import read_ct, read_labels

    vocabulary = segmenter.vocabulary
    for index in range(phantoms):
        phantom = generate_shifted_scan_phantom(REPORT_SEEDS + index)
        yield f"phantom {REPORT_SEEDS + index}", phantom.ct, phantom.labels, None
    for folder in synthetic:
        image, truth = read_ct(folder / "ct.nrrd"), read_labels(folder / "labels.nrrd")
        require_one_grid(truth, folder / "labels.nrrd", image, folder / "ct.nrrd")
        yield folder.name, image, truth, None
    for entry in entries:
        image, truth = read_entry(entry, vocabulary)
        known = [label for label in vocabulary.by_label if label not in entry.unannotated]
        yield f"{entry.image.parent.name}/{entry.image.name}", image, truth, known
    if own.ct is not None and own.labels is not None:
        image, truth = read_ct(own.ct), read_labels(own.labels)
        require_ct(image, own.ct.name)
        require_one_grid(truth, own.labels, image, own.ct)
        if own.label_table is not None:
            truth = remap_labels(truth, read_table(own.label_table, vocabulary))
        require_known(truth, own.labels, vocabulary)
        yield f"{own.ct.parent.name}/{own.ct.name}", image, truth, None


def _print(measured: ClickMeasurement) -> None:
    from ..evaluation.click_simulation import GOALS, REPORTED

    counts = [n for n in REPORTED if n <= measured.clicks]
    # Few columns, for terminals 80 characters wide. The files contain all values.
    columns = [*(str(n) for n in counts), *(f"NoC{goal * 100:.0f}" for goal in GOALS), "Worse"]
    for engine in measured.engines:
        title = f"{engine}: Dice by number of clicks"
        rows = make_table(title, "Organ", *columns, numbers=tuple(columns))
        for organ in dict.fromkeys(each.organ for each in measured.select_courses(engine)):
            rows.add_row(organ.replace("_", " "), *_format_row(measured.summarize(engine, organ), counts))
        rows.add_section()
        everything = measured.summarize(engine)
        rows.add_row("Mean of all", *_format_row(everything, counts))
        print_table(rows)
        failures = ", ".join(
            f"{count} {'does' if count == 1 else 'do'} not reach {goal}"
            for goal, count in everything["failures"].items()
        )
        if everything["missing_one_click"] is not None:
            median = everything["missing_one_click"]
            print_line(
                f"{everything['missing']} were missing at the start; after one click, the median Dice is {median:.2f}."
            )
        took = "" if everything["median_seconds"] is None else f" A click took {everything['median_seconds']:.2f} s."
        print_line(f"Of {everything['organs']} organs, {failures}.{took}")


def _format_row(summary: dict[str, Any], counts: list[int]) -> list[str]:
    return [
        *(_format(summary["dice"][str(n)]) for n in counts),
        *(f"{value:.1f}" for value in summary["noc"].values()),
        f"{summary['worse']:.0%}",
    ]


def _format(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
