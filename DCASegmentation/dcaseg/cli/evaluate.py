"""``dca evaluate``: how well a model finds the organs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..method.log_gap import GROUPS
from .bundle import load
from .console import Report, progress_bar, say, show, table, warn
from .option_values import DeviceOption, new_file, words

if TYPE_CHECKING:
    from ..evaluation.scores import Scores
    from ..evaluation.scoring import Scoring
    from ..method.log_gap import Partition
    from ..models.bundle import Bundle
    from ..training.datalist import Entry

NAME = "evaluate"
EXAMPLES = "Example: dca evaluate --phantoms 10 --metrics dice,asd,hd95,nsd -o scores.csv"

_USUAL_PHANTOMS = 10


def run(
    bundle: Annotated[str | None, typer.Option(help="Folder or name of the model. Else the default one.")] = None,
    phantoms: Annotated[
        int | None, typer.Option(min=1, help="So many synthetic people no training has seen. 10 if nothing is given.")
    ] = None,
    ct: Annotated[list[Path] | None, typer.Option(help="A labelled CT of your own. May be repeated.")] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="The label map of that CT, once for each --ct.")] = None,
    data: Annotated[Path | None, typer.Option(help="A list of data (dca dataset); see --group.")] = None,
    group: Annotated[str, typer.Option(help="Which cases of the list: test, validation or training.")] = "test",
    prediction: Annotated[
        list[Path] | None, typer.Option(help="A label map to score instead of a model's. May be repeated.")
    ] = None,
    truth: Annotated[list[Path] | None, typer.Option(help="The true label map, once for each --prediction.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Of dice, asd (mm, both ways), asd_voxel (the paper's family's), hd95, nsd.")
    ] = "dice",
    empty: Annotated[
        str, typer.Option(help="Organs that one side lacks: leave_out, dhc, galoss or galoss_validation.")
    ] = "leave_out",
    tolerance: Annotated[float, typer.Option(min=0.0, help="Tolerance of nsd in mm.")] = 2.0,
    device: DeviceOption = "auto",
    result: Annotated[
        str, typer.Option("--output", help="aggregated (the model's result) or experts (the stitched experts' alone).")
    ] = "aggregated",
    keep_islands: Annotated[
        bool, typer.Option("--keep-islands", help="Keep pieces of an organ far smaller than its largest.")
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV file with the scores of each case.")] = None,
    table_file: Annotated[
        Path | None, typer.Option("--table", help="Table in the paper's layout: .csv, .md or .tex.")
    ] = None,
    write_scores: Annotated[
        bool, typer.Option("--write-scores", help="Write the scores on phantoms into the bundle's metadata.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Measure a model on synthetic people it has never seen, on labelled CTs of your own or on a list of data; or score
    label maps, whatever made them.

    Label maps must use the model's numbers of the organs (see dca bundle info) and lie on the grid of their CT. Organs
    that an entry of a list says are unknown in it do not count.
    """
    from ..evaluation.metrics import metrics_named, policy_named
    from ..evaluation.scores import Scores
    from ..evaluation.scoring import Scoring, score_entries, score_on_phantoms
    from ..inference.options import SegmentOptions
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter

    scoring = Scoring(metrics_named(["dice", *words(metrics)]), policy_named(empty), tolerance)
    _require_surfaces(scoring)
    maps = _pairs(prediction or [], truth or [], "--prediction", "--truth")
    entries = labelled_entries(ct or [], labels or [], data, group)
    if maps and (entries or phantoms):
        raise UserError("--prediction scores label maps alone.", "Leave out --ct, --data and --phantoms.")
    if phantoms is None and not entries and not maps:
        phantoms = _USUAL_PHANTOMS
    if write_scores and (entries or maps or not phantoms):
        raise UserError("--write-scores is for scores on phantoms alone.", "Leave out --ct, --data and --prediction.")
    if write_scores and result != "aggregated":
        raise UserError("--write-scores is for the model's own result.", "Leave out --output.")
    options = SegmentOptions(output=result, keep_islands=keep_islands)  # type: ignore[arg-type]  # which checks it
    for file in (out, table_file):
        if file is not None:
            new_file(file, overwrite)
    form = None if table_file is None else _form(table_file)
    keep_freed_memory()
    model = load(bundle)
    vocabulary = model.metadata.vocabulary
    with progress_bar() as progress:
        scores = Scores(vocabulary, scoring.metrics)
        if maps:
            _score_maps(scores, maps, scoring, progress)
        else:
            segmenter = Segmenter(model, device, runtime="auto")
            if phantoms:
                scores = score_on_phantoms(segmenter, vocabulary, phantoms, options, progress=progress, scoring=scoring)
            score_entries(scores, segmenter, entries, options, scoring, progress)
    _print(scores, "Label maps" if maps else model.metadata.name, model.metadata.partition)
    if out is not None:
        scores.write_csv(out)
        say(f"Written: {out}")
    if table_file is not None and form is not None:
        _write_table(scores, "Label maps" if maps else model.metadata.name, table_file, form)
    if write_scores:
        _write_into(model, scores)
        say(f"The scores are in the metadata of {model.folder}.")


def _require_surfaces(scoring: Scoring) -> None:
    """MONAI measures surfaces with SciPy, which is not installed along with this program."""
    from importlib.util import find_spec

    if len(scoring.metrics) > 1 and find_spec("scipy") is None:
        raise UserError("Distances need SciPy.", "Install it (pip install scipy), or measure dice alone.")


def _pairs(ours: list[Path], theirs: list[Path], our_option: str, their_option: str) -> list[tuple[Path, Path]]:
    if len(ours) != len(theirs):
        raise UserError(
            f"{len(ours)} {our_option} and {len(theirs)} {their_option} were given.",
            f"Give one {their_option} for each {our_option}.",
        )
    return list(zip(ours, theirs, strict=True))


def labelled_entries(cts: list[Path], labels: list[Path], data: Path | None, group: str) -> list[Entry]:
    """The labelled CTs to score on. Raises UserError where there is none in the list's group."""
    from ..training.datalist import Entry, read_datalist, require_files

    entries = [Entry(ct, label) for ct, label in _pairs(cts, labels, "--ct", "--labels")]
    if data is None:
        return entries
    if group not in ("test", "validation", "training"):
        raise UserError(f"There is no group '{group}' of labelled cases.", "Choose test, validation or training.")
    datalist = read_datalist(data)
    require_files(datalist)
    listed = [entry for entry in dict(datalist.groups())[group] if entry.label is not None]
    if not listed:
        raise UserError(f"{data} has no labelled case in its group '{group}'.", "Choose another --group.")
    return entries + listed


def _score_maps(scores: Scores, maps: list[tuple[Path, Path]], scoring: Scoring, progress: Report) -> None:
    from ..evaluation.scoring import require_known, require_one_grid, score_labels
    from ..imaging.readers import read_labels

    for index, (predicted_path, truth_path) in enumerate(maps):
        progress(index / len(maps), f"Label map {index + 1} of {len(maps)}")
        predicted, truth = read_labels(predicted_path), read_labels(truth_path)
        require_one_grid(predicted, predicted_path, truth, truth_path)
        for image, path in ((predicted, predicted_path), (truth, truth_path)):
            require_known(image, path, scores.vocabulary)
        scores.add(predicted_path.name, score_labels(predicted, truth, len(scores.vocabulary), scoring))


def _print(scores: Scores, title: str, partition: Partition) -> None:
    from ..evaluation.statistics import bootstrap_interval

    titles = {
        metric: f"{metric.title} ({metric.unit})" if metric.unit == "mm" else metric.title for metric in scores.metrics
    }
    shown = table(
        f"{title}: means of {len(scores.cases)} cases", "Organ", "Expert", *titles.values(),
        numbers=tuple(titles.values()),
    )  # fmt: skip
    groups = dict(zip(GROUPS, partition.owners, strict=True))
    by_organ = {metric: scores.by_organ(metric) for metric in scores.metrics}
    for group, owned in groups.items():
        for label in owned:
            organ = scores.vocabulary.by_label[label]
            shown.add_row(organ.name, group, *(_shown(by_organ[metric][organ.key]) for metric in scores.metrics))
        shown.add_section()
    for group, owned in groups.items():
        shown.add_row(f"All {group} organs", "", *(_shown(scores.mean(owned, metric)) for metric in scores.metrics))
    shown.add_section()
    shown.add_row("Mean of all organs", "", *(_shown(scores.mean(metric=metric)) for metric in scores.metrics))
    if len(scores.cases) > 1:
        intervals = [bootstrap_interval(scores, metric) for metric in scores.metrics]
        shown.add_row("95 % interval over cases", "", *(f"{_shown(low)} to {_shown(high)}" for low, high in intervals))
    show(shown)
    for metric in scores.metrics:
        if metric.kind == "distance" and (left_out := scores.not_counted(metric)):
            warn(f"{metric.title}: {left_out} organs that one side lacks do not count. Read it together with Dice.")


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _form(path: Path) -> str:
    forms = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
    if path.suffix not in forms:
        raise UserError(f"--table {path} is of no known kind.", f"End its name in one of: {', '.join(forms)}.")
    return forms[path.suffix]


def _write_table(scores: Scores, name: str, path: Path, form: str) -> None:
    from ..evaluation.method_table import MethodTable
    from ..evaluation.metrics import ASD
    from ..imaging.writers import write_text

    distances = [metric for metric in scores.metrics if metric.kind == "distance"]
    made = MethodTable(scores.vocabulary, {name: [scores]}, distances[0] if distances else ASD)
    write_text(made.text(form), path)  # type: ignore[arg-type]
    say(f"Written: {path}")


def _write_into(model: Bundle, scores: Scores) -> None:
    from ..models.bundle import save_scores
    from ..models.metadata import MeasuredScores
    from ..training.sources import TEST_SEEDS

    count = len(scores.cases)
    save_scores(
        model.folder,
        MeasuredScores(
            data=f"synthetic people no training has seen (phantoms from seed {TEST_SEEDS})",
            cases=count,
            dice={key: round(dice, 4) for key, dice in scores.by_organ().items() if math.isfinite(dice)},
            command=f"dca evaluate --bundle {model.folder.name} --phantoms {count} --write-scores",
        ),
    )
