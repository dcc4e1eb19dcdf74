"""``dca evaluate-clicks``: how far simulated clicks bring a model's result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .bundle import load
from .console import progress_bar, say, show, table
from .correct import engine_of
from .evaluate import labelled_entries
from .option_values import DeviceOption, words

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..evaluation.click_simulation import ClickMeasurement
    from ..inference.segmenter import Segmenter
    from ..training.datalist import Entry

NAME = "evaluate-clicks"
EXAMPLES = "Example: dca evaluate-clicks --phantoms 4 --engines random_walker,brush -o clicks/"

# By this file an earlier folder is known.
_SUMMARY = "clicks.json"
_USUAL_PHANTOMS = 4


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make: clicks.csv, clicks.json, clicks.png.")],
    bundle: Annotated[
        str | None, typer.Option(help="Model whose result is corrected. Else the default one (dca bundle info).")
    ] = None,
    engines: Annotated[
        str,
        typer.Option(help="Of random_walker, seeded_random_walker, brush, and folders of networks (dca train-clicks)."),
    ] = "random_walker,seeded_random_walker,brush",
    clicks: Annotated[int, typer.Option(min=1, max=10, help="Clicks for each organ, at most.")] = 10,
    phantoms: Annotated[
        int | None, typer.Option(min=1, help="So many synthetic people unlike the training's. 4 if nothing is given.")
    ] = None,
    painted: Annotated[
        list[Path] | None, typer.Option(help="A folder that dca synthesize has made. May be repeated.")
    ] = None,
    ct: Annotated[Path | None, typer.Option(help="A labelled CT of your own.")] = None,
    labels: Annotated[Path | None, typer.Option(help="The label map of that CT.")] = None,
    label_table: Annotated[
        Path | None, typer.Option(help="Table (columns id and name) of that label map, if its numbers are others.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The labelled cases of a list (dca dataset); see --group.")] = None,
    group: Annotated[str, typer.Option(help="Which cases of the list: test, validation or training.")] = "test",
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier run.")] = False,
) -> None:
    """Measure correction with simulated clicks, from a model's own result.

    Each click lies at the center of the organ's largest error. Reported are Dice after 0 to 10 clicks, clicks to Dice
    0.85 and 0.90 (NoC, a failure counts as 10), seconds, and the share of clicks that lower Dice. On synthetic
    people with thicker slices, more noise and other contrast than in training, painted CTs, or labelled CTs. Where
    labels come from another network, Dice is agreement with that network.
    """
    from ..evaluation.click_simulation import BallBrush, ClickMeasurement, measure_case
    from ..evaluation.figures.curves import click_curve
    from ..imaging.writers import new_folder, write_json
    from ..inference.options import SegmentOptions
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter

    if (ct is None) != (labels is None):
        raise UserError("A CT and its label map go together.", "Give both --ct and --labels.")
    if label_table is not None and labels is None:
        raise UserError("--label-table is for --labels.", "Give --ct and --labels too.")
    chosen = [BallBrush() if name == BallBrush.name else engine_of(name) for name in words(engines)]
    if not chosen:
        raise UserError("No engine was chosen.", "Give --engines random_walker.")
    entries = labelled_entries([], [], data, group)
    if not (entries or painted or ct is not None or phantoms):
        phantoms = _USUAL_PHANTOMS
    keep_freed_memory()
    model = load(bundle)
    segmenter = Segmenter(model, device, runtime="auto")
    measured = ClickMeasurement()
    cases: list[str] = []
    with new_folder(out, overwrite, recognized_by=_SUMMARY) as folder:
        with progress_bar() as progress:
            for name, image, truth, known in _cases(segmenter, phantoms or 0, painted or [], entries,
                                                    (ct, labels, label_table)):  # fmt: skip
                progress(0.0, f"{name}: segmenting")
                start = segmenter.segment(image, SegmentOptions()).labels
                measure_case(measured, name, image, start, truth, segmenter.vocabulary, chosen, known, clicks, progress)
                cases.append(name)
        if not measured.courses:
            raise UserError("The label maps hold no organ of the model.", "Give label maps in its numbers.")
        about = {"cases": cases, "model": {"name": model.metadata.name, "sha256": model.metadata.weights.sha256}}
        write_json({**about, "clicks": clicks, "engines": measured.to_json()}, folder / _SUMMARY)
        measured.write_csv(folder / "clicks.csv")
        title = f"{model.metadata.name}: {', '.join(cases)}"
        click_curve(measured, title if len(title) < 100 else f"{title[:97]}...").savefig(folder / "clicks.png", dpi=120)
    _print(measured, clicks)
    say(f"Written: {out}")


def _cases(
    segmenter: Segmenter,
    phantoms: int,
    painted: list[Path],
    entries: list[Entry],
    own: tuple[Path | None, Path | None, Path | None],
) -> Iterator[tuple[str, sitk.Image, sitk.Image, list[int] | None]]:
    """Name, CT, truth and known labels (None: all) of each case."""
    from ..evaluation.review_evaluation import REPORT_SEEDS, odd_phantom
    from ..evaluation.scoring import read_entry, read_table, require_known, require_one_grid, translated
    from ..imaging.ct_checks import check_ct
    from ..imaging.readers import read_ct, read_labels

    vocabulary = segmenter.vocabulary
    for index in range(phantoms):
        phantom = odd_phantom(REPORT_SEEDS + index)
        yield f"phantom {REPORT_SEEDS + index}", phantom.ct, phantom.labels, None
    for folder in painted:
        image, truth = read_ct(folder / "ct.nrrd"), read_labels(folder / "labels.nrrd")
        require_one_grid(truth, folder / "labels.nrrd", image, folder / "ct.nrrd")
        yield folder.name, image, truth, None
    for entry in entries:
        image, truth = read_entry(entry, vocabulary)
        known = [label for label in vocabulary.by_label if label not in entry.unannotated]
        yield f"{entry.image.parent.name}/{entry.image.name}", image, truth, known
    ct_path, labels_path, table_path = own
    if ct_path is not None and labels_path is not None:
        image, truth = read_ct(ct_path), read_labels(labels_path)
        check_ct(image)
        require_one_grid(truth, labels_path, image, ct_path)
        if table_path is not None:
            truth = translated(truth, read_table(table_path, vocabulary))
        require_known(truth, labels_path, vocabulary)
        yield f"{ct_path.parent.name}/{ct_path.name}", image, truth, None


def _print(measured: ClickMeasurement, clicks: int) -> None:
    from ..evaluation.click_simulation import GOALS, REPORTED

    counts = [n for n in REPORTED if n <= clicks]
    # Short, for terminals of 80 columns; the rest is in the files.
    columns = [*(str(n) for n in counts), *(f"NoC{goal * 100:.0f}" for goal in GOALS), "Worse"]
    for engine in measured.engines:
        title = f"{engine}: Dice after so many clicks"
        shown = table(title, "Organ", *columns, numbers=tuple(columns))
        for organ in dict.fromkeys(each.organ for each in measured.of(engine)):
            shown.add_row(organ.replace("_", " "), *_row(measured.summary(engine, organ), counts))
        shown.add_section()
        everything = measured.summary(engine)
        shown.add_row("Mean of all", *_row(everything, counts))
        show(shown)
        failures = ", ".join(f"{count} do not reach {goal}" for goal, count in everything["failures"].items())
        took = "" if everything["median_seconds"] is None else f" A click took {everything['median_seconds']:.2f} s."
        say(f"Of {everything['organs']} organs {failures}.{took}")


def _row(summary: dict[str, Any], counts: list[int]) -> list[str]:
    return [
        *(_shown(summary["dice"][str(n)]) for n in counts),
        *(f"{value:.1f}" for value in summary["noc"].values()),
        f"{summary['worse']:.0%}",
    ]


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
