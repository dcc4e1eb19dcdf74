"""``dca evaluate``: measure how well a model segments the organs."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError, format_install_command
from ..inference.options import SegmentOptions
from ..method.log_gap import GROUPS
from ..types import ProgressCallback
from .console import make_table, print_line, print_table, progress_bar, warn
from .field_options import Values, expand, fields_of
from .option_values import get_labeled_entries, load_bundle, pair_up, parse_list, require_new_files
from .options import CASES_PANEL, OUTPUT_PANEL, BundleOption, DeviceOption, group_option, overwrite_option

if TYPE_CHECKING:
    from ..evaluation.scores import Scores
    from ..evaluation.scoring import ScoringOptions
    from ..method.log_gap import Partition
    from ..models.bundle import Bundle
    from ..training.datalist import Entry

NAME = "evaluate"
EXAMPLES = "Example: dca evaluate --phantoms 10 --metrics dice,asd,hd95,nsd -o scores.csv"

_DEFAULT_PHANTOMS = 10
_SCORES_PANEL = "Scores"


@expand
def run(
    *,
    bundle: BundleOption = None,
    phantoms: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of phantoms that no training has used. Default: 10, if no other cases are given.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = None,
    ct: Annotated[
        list[Path] | None,
        typer.Option(help="Your own labeled CT. Can be repeated.", rich_help_panel=CASES_PANEL),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="Label map of the CT, once for each --ct.", rich_help_panel=CASES_PANEL),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="List of CTs (see dca dataset). --group selects cases.", rich_help_panel=CASES_PANEL),
    ] = None,
    group: Annotated[str, group_option(CASES_PANEL)] = "test",
    prediction: Annotated[
        list[Path] | None,
        typer.Option(help="Label map to score; no model is run. Can be repeated.", rich_help_panel=CASES_PANEL),
    ] = None,
    truth: Annotated[
        list[Path] | None,
        typer.Option(help="True label map, once for each --prediction.", rich_help_panel=CASES_PANEL),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Metrics, separated by commas: dice, asd (mm, symmetric), asd_voxel (voxels, as published with "
            "methods like the paper's), hd95 (95th percentile Hausdorff distance, mm), nsd (normalized surface Dice).",
            rich_help_panel=_SCORES_PANEL,
        ),
    ] = "dice",
    empty: Annotated[
        str,
        typer.Option(
            help="How to score an organ that is missing in the prediction or the truth: leave_out, dhc, galoss or "
            "galoss_validation.",
            rich_help_panel=_SCORES_PANEL,
        ),
    ] = "leave_out",
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="Tolerance of the normalized surface Dice in mm.", rich_help_panel=_SCORES_PANEL),
    ] = 2.0,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="Also measure artifacts of the attention: energy at the Nyquist frequency, and how often the dominant "
            "expert changes within an organ.",
            rich_help_panel=_SCORES_PANEL,
        ),
    ] = False,
    labels_from: Annotated[
        Values, fields_of(SegmentOptions, "output", "keep_islands", base=SegmentOptions(), panel=_SCORES_PANEL)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="CSV file to write, with the scores of each case.", rich_help_panel=OUTPUT_PANEL
        ),
    ] = None,
    table_file: Annotated[
        Path | None,
        typer.Option(
            "--table",
            help="Table to write in the layout of the paper: .csv, .md or .tex.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = None,
    write_scores: Annotated[
        bool,
        typer.Option(
            "--write-scores",
            help="Write the scores on phantoms into the metadata of the model.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    overwrite: Annotated[bool, overwrite_option("existing files", OUTPUT_PANEL)] = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure the accuracy of a model, or score existing label maps.

    A model is measured on phantoms that it has never seen, on your own labeled CTs, or on a list of CTs. Label maps
    must use the label values of the model (see **dca bundle info**) and the grid of their CT. Organs that the list
    marks as unannotated in a case are not counted.
    """
    from ..evaluation.metrics import get_metrics, get_policy
    from ..evaluation.scores import Scores
    from ..evaluation.scoring import ScoringOptions, score_entries, score_on_phantoms
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter

    scoring = ScoringOptions(get_metrics(["dice", *parse_list(metrics)]), get_policy(empty), tolerance)
    _require_surfaces(scoring)
    maps = pair_up(prediction or [], truth or [], "--prediction", "--truth")
    entries = get_labeled_entries(ct or [], labels or [], data, group)
    if maps and (entries or phantoms):
        raise UserError("--prediction cannot be combined with other cases.", "Omit --ct, --data and --phantoms.")
    if attention and maps:
        raise UserError("--attention needs a model, and --prediction uses none.", "Omit --attention or --prediction.")
    if phantoms is None and not entries and not maps:
        phantoms = _DEFAULT_PHANTOMS
    if write_scores and (entries or maps or not phantoms):
        raise UserError("--write-scores needs scores on phantoms only.", "Omit --ct, --data and --prediction.")
    options = SegmentOptions(**labels_from)
    if write_scores and options.output != "aggregated":
        raise UserError("--write-scores needs the model's own result.", "Omit --output.")
    require_new_files({"--out": out, "--table": table_file}, overwrite)
    table_format = None if table_file is None else _get_table_format(table_file)
    keep_freed_memory()
    model = load_bundle(bundle)
    vocabulary = model.metadata.vocabulary
    with progress_bar() as progress:
        scores = Scores(vocabulary, scoring.metrics)
        if maps:
            _score_maps(scores, maps, scoring, progress)
        else:
            segmenter = Segmenter(model, device, backend="auto")
            if phantoms:
                scores = score_on_phantoms(segmenter, vocabulary, phantoms, options, progress=progress, scoring=scoring)
            score_entries(scores, segmenter, entries, options, scoring, progress)
    _print(scores, "Label maps" if maps else model.metadata.name, model.metadata.partition)
    if attention:
        _print_attention(model, entries, phantoms or 0)
    if out is not None:
        scores.write_csv(out)
        print_line(f"Written: {out}")
    if table_file is not None and table_format is not None:
        _write_table(scores, "Label maps" if maps else model.metadata.name, table_file, table_format)
    if write_scores:
        _write_scores(model, scores)
        print_line(f"The scores are in the metadata of {model.folder}.")


def _require_surfaces(scoring: ScoringOptions) -> None:
    """Check that SciPy is installed, which MONAI needs for surface distances. Raises UserError."""
    from importlib.util import find_spec

    if len(scoring.metrics) > 1 and find_spec("scipy") is None:
        raise UserError(
            "Surface distances need SciPy, which is not installed.",
            f"Install it ({format_install_command('scipy')}), or measure only dice.",
        )


def _score_maps(
    scores: Scores, maps: list[tuple[Path, Path]], scoring: ScoringOptions, progress: ProgressCallback
) -> None:
    from ..evaluation.scoring import require_known, require_one_grid, score_labels
    from ..imaging.readers import read_labels
    from ..training.datalist import make_unique_names

    names = make_unique_names([predicted_path for predicted_path, _ in maps])
    for index, (predicted_path, truth_path) in enumerate(maps):
        progress(index / len(maps), f"Label map {index + 1} of {len(maps)}")
        predicted, truth = read_labels(predicted_path), read_labels(truth_path)
        require_one_grid(predicted, predicted_path, truth, truth_path)
        for image, path in ((predicted, predicted_path), (truth, truth_path)):
            require_known(image, path, scores.vocabulary)
        scores.add(names[index], score_labels(predicted, truth, len(scores.vocabulary), scoring))


def _print(scores: Scores, title: str, partition: Partition) -> None:
    from ..evaluation.statistics import MIN_CASES, compute_bootstrap_interval

    titles = {
        metric: f"{metric.title} ({metric.unit})" if metric.unit == "mm" else metric.title for metric in scores.metrics
    }
    count = f"{len(scores.cases)} case{'s' if len(scores.cases) != 1 else ''}"
    rows = make_table(
        f"{title}: mean of {count}", "Organ", "Group", *titles.values(),
        numbers=tuple(titles.values()),
    )  # fmt: skip
    groups = dict(zip(GROUPS, partition.owners, strict=True))
    by_organ = {metric: scores.average_by_organ(metric) for metric in scores.metrics}
    for group, owned in groups.items():
        for label in owned:
            organ = scores.vocabulary.by_label[label]
            rows.add_row(organ.name, group, *(_format(by_organ[metric][organ.key]) for metric in scores.metrics))
        rows.add_section()
    for group, owned in groups.items():
        rows.add_row(f"All {group} organs", "", *(_format(scores.mean(owned, metric)) for metric in scores.metrics))
    rows.add_section()
    rows.add_row("Mean of all organs", "", *(_format(scores.mean(metric=metric)) for metric in scores.metrics))
    if len(scores.cases) >= MIN_CASES:
        intervals = [compute_bootstrap_interval(scores, metric) for metric in scores.metrics]
        rows.add_row("95 % interval over cases", "", *(f"{_format(low)} to {_format(high)}" for low, high in intervals))
    print_table(rows)
    for metric in scores.metrics:
        if metric.kind == "distance" and (not_counted := scores.count_excluded(metric)):
            organs = "1 organ that is" if not_counted == 1 else f"{not_counted} organs that are"
            warn(f"{metric.title} leaves out {organs} missing in the prediction or the truth. Consider Dice, too.")


def _print_attention(model: Bundle, entries: list[Entry], phantoms: int) -> None:
    from ..evaluation.attention_quality import measure_attention, preprocess_cts
    from ..imaging.readers import read_ct
    from ..training.sources import TEST_SEEDS, scan_phantom

    # One at a time: a CT takes up to half a GB.
    cts = chain(
        (scan_phantom(TEST_SEEDS + index).ct for index in range(phantoms)),
        (read_ct(entry.image) for entry in entries),
    )
    try:
        quality = measure_attention(model.network(), preprocess_cts(cts, model.metadata), model.metadata.patch)
    except ValueError as error:
        raise UserError(f"The attention cannot be measured: {error}.", "Omit --attention.") from None
    z, y, x = quality.nyquist
    print_line(
        f"Attention: the energy at the Nyquist frequency is {z:.2f} (z), {y:.2f} (y) and {x:.2f} (x) times that of "
        "nearby frequencies (1 without artifacts). Within organs, the dominant expert changes from one voxel to the "
        f"next at {quality.flips:.1%} of the voxels."
    )


def _format(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _get_table_format(path: Path) -> str:
    formats = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
    if path.suffix not in formats:
        raise UserError(f"--table {path} has an unknown format.", f"Use one of the extensions {', '.join(formats)}.")
    return formats[path.suffix]


def _write_table(scores: Scores, name: str, path: Path, table_format: str) -> None:
    from ..evaluation.method_table import MethodTable
    from ..evaluation.metrics import ASD
    from ..imaging.writers import write_text

    distances = [metric for metric in scores.metrics if metric.kind == "distance"]
    method_table = MethodTable(scores.vocabulary, {name: [scores]}, distances[0] if distances else ASD)
    write_text(method_table.render(table_format), path)  # type: ignore[arg-type]
    print_line(f"Written: {path}")


def _write_scores(model: Bundle, scores: Scores) -> None:
    from ..models.bundle import save_scores
    from ..models.metadata import MeasuredScores
    from ..training.sources import TEST_SEEDS

    count = len(scores.cases)
    save_scores(
        model.folder,
        MeasuredScores(
            data=f"phantoms that no training has used (from seed {TEST_SEEDS})",
            cases=count,
            dice={key: round(dice, 4) for key, dice in scores.average_by_organ().items() if math.isfinite(dice)},
            command=f"dca evaluate --bundle {model.folder.name} --phantoms {count} --write-scores",
        ),
    )
