"""``dca experiment``: run or resume the experiments of the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import Cancelled, UserError
from ..training.options import TrainingOptions
from .console import cancellation_message, make_table, print_line, print_table, progress_bar
from .field_options import Values, expand, fields_of
from .option_values import load_bundle, parse_integers, parse_numbers
from .options import DATA_PANEL, MODEL_PANEL, RUN_PANEL, SCHEDULE_PANEL, CacheOption, DeviceOption, NetworkGroup

if TYPE_CHECKING:
    from ..evaluation.experiments.definitions import Experiment
    from ..evaluation.experiments.figures import Also
    from ..evaluation.experiments.runs import Data, Runs
    from ..evaluation.experiments.step_cost import StepCost
    from ..evaluation.experiments.tables import Outcome
    from ..training.options import GridOptions

NAME = "experiment"
EXAMPLES = "Example: dca experiment table3 table4 baselines -o experiments/phantoms --seeds 0,1,2"

LEARNING = "learning"

_TABLES_PANEL = "Tables and figures"


@expand
def run(
    names: Annotated[
        list[str],
        typer.Argument(
            help="One or more of table1, table2 (all methods), table3, table4, table5, unlabeled, baselines, fig1, "
            "fig2, fig5 to fig8; or learning alone.",
            metavar="NAME...",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of runs, tables and figures. All experiments can share it.")
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="List of CTs (see dca dataset). Default: phantoms.", rich_help_panel=DATA_PANEL),
    ] = None,
    anatomies: Annotated[
        Path | None,
        typer.Option(
            help="Use synthetic CTs of real anatomies instead of phantoms. The folder contains one folder for each "
            "label map.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    phantoms: Annotated[
        str,
        typer.Option(
            "--phantoms",
            "--people",
            help="Numbers of labeled, unlabeled, validation and test phantoms.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = "4,16,4,6",
    cache: CacheOption = None,
    preset: Annotated[
        Literal["small", "anatomies", "default", "paper"] | None,
        typer.Option(
            help="Training options. small: 6 mm, 4 filters, 2000 steps, for a CPU. anatomies: 5 mm, 8 filters, 6000 "
            "steps. Default: anatomies with --anatomies, otherwise small.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    network: NetworkGroup,
    bundle: Annotated[
        str | None,
        typer.Option(help="learning: initial model. Default: the default model.", rich_help_panel=MODEL_PANEL),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(help="Seeds of the runs. Figures 5, 6 and 8 show the first.", rich_help_panel=SCHEDULE_PANEL),
    ] = "0,1,2",
    length: Annotated[
        Values,
        fields_of(TrainingOptions, "steps", panel=SCHEDULE_PANEL, help={"steps": "Length of each run in steps."}),
    ],
    equal: Annotated[
        Literal["steps", "compute"],
        typer.Option(
            help="table1, table2: give all methods the same number of steps, or the same multiply-accumulate "
            "operations as DCA.",
            rich_help_panel=SCHEDULE_PANEL,
        ),
    ] = "steps",
    validate_every: Annotated[
        int, typer.Option(min=1, help="Steps between validations.", rich_help_panel=SCHEDULE_PANEL)
    ] = 500,
    with_paper_numbers: Annotated[
        bool,
        typer.Option(
            "--show-paper-numbers",
            help="table1, table2: also show the numbers of the paper and their protocol.",
            rich_help_panel=_TABLES_PANEL,
        ),
    ] = False,
    methods: Annotated[
        Literal["baselines", "all"],
        typer.Option(
            "--methods",
            help="fig1, fig5, fig6: show the methods of baselines, or all methods of table1.",
            rich_help_panel=_TABLES_PANEL,
        ),
    ] = "baselines",
    more_lists: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            help="fig2: another list whose labeled cases are ranked. Can be repeated.",
            rich_help_panel=_TABLES_PANEL,
        ),
    ] = None,
    ratios: Annotated[
        str,
        typer.Option(help="fig2 with one list: percentages of cases that are labeled.", rich_help_panel=_TABLES_PANEL),
    ] = "10,20,40,100",
    picture: Annotated[
        Literal["png", "pdf", "svg"],
        typer.Option("--figure-format", help="File format of the figures.", rich_help_panel=_TABLES_PANEL),
    ] = "png",
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Train nothing; measure some steps of each row and print how long its runs would take.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = False,
    finished_only: Annotated[
        bool,
        typer.Option(
            "--finished-only",
            help="Train nothing; make the tables of the finished runs, also while another command makes more.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = False,
    device: DeviceOption = "auto",
    max_parallel: Annotated[
        int,
        typer.Option(
            "--max-parallel",
            "--at-once",
            min=1,
            help="Maximum number of runs at the same time, also on one GPU. They share the CPU cores.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = 1,
) -> None:
    """Run the experiments of the paper's tables and figures.

    The networks of each table or figure are trained with several seeds and compared. Finished runs are kept. To
    continue after Ctrl+C, an error or a power failure, run the same command again. Until all runs are finished, each
    table is written as NAME-partial, with the finished ones. Tables and figures share runs, so another table or figure
    in the same folder only needs its additional runs. To keep **--max-parallel** runs busy, name all tables and figures
    in one command. Scores are those of the test cases on the model's grid.

    **learning** instead measures what a model learns from 1, 2 and 4 corrected phantoms of an unknown scanner, with
    and without unlabeled ones. It accepts --bundle, --seeds, --steps, --cache and --device.
    """
    from ..evaluation.experiments.definitions import (
        ALL_EXPERIMENTS,
        METHODS,
        TABLES,
        equalize_compute,
        remove_unsupported_rows,
        require_matching_dataset,
    )
    from ..evaluation.experiments.figures import FIGURES, make_figure
    from ..evaluation.experiments.runs import Runs
    from ..evaluation.experiments.tables import PAPER, load_finished_outcome, make_runs_of, write_tables
    from ..inference.device import choose_device
    from ..inference.process_settings import keep_freed_memory

    seed_values = parse_integers(seeds, "--seeds", "0,1,2")
    if min(seed_values) < 0 or len(set(seed_values)) < len(seed_values):
        raise UserError(
            f"--seeds '{seeds}' repeats a seed or has a negative one.",
            "Specify different numbers of at least 0: --seeds 0,1,2.",
        )
    if names == [LEARNING]:
        if data is not None or network.changes():
            raise UserError(
                "learning uses its own data, grid and network.",
                "Omit --data, --filters, --patch, --spacing and --preprocessing.",
            )
        if max_parallel > 1:
            raise UserError("learning cannot make several runs at the same time.", "Omit --max-parallel.")
        if estimate or finished_only:
            raise UserError("learning has neither an estimate nor partial tables.", "Omit these options.")
        run_learning(bundle, out, cache or out / "cases", seed_values, dict(length), device)
        return
    _check_names(names, bundle, bool(more_lists), equal != "steps" or with_paper_numbers)
    if (estimate or finished_only) and not set(names) & set(ALL_EXPERIMENTS):
        raise UserError("--estimate and --finished-only are for tables.", "Specify a table, such as table1.")
    if estimate and finished_only:
        raise UserError("--estimate and --finished-only cannot be combined.", "Specify only one of them.")
    if anatomies is not None and data is not None:
        raise UserError("--data and --anatomies cannot be combined.", "Specify only one of them.")
    common = _make_options(preset or ("anatomies" if anatomies else "small"), {**network.changes(), **length})
    counts = parse_integers(phantoms, "--phantoms", "4,16,4,6")
    percentages = parse_numbers(ratios, "--ratios", len(ratios.split(",")))
    if not all(0 < value <= 100 for value in percentages):
        raise UserError(f"--ratios '{ratios}' are not percentages.", "Write them like this: --ratios 10,20,40,100.")
    keep_freed_memory()
    folder = cache or out / "cases"
    message = f"Finished runs are kept in {out}. To continue, run the same command again."
    partial: dict[str, Outcome] = {}
    pictures = []
    with cancellation_message(lambda: message), progress_bar() as progress:
        cases = _prepare_data(data, anatomies, counts, folder, common.grid, progress)
        torch_device = str(choose_device(device).torch_device)
        for name in names:
            require_matching_dataset(name, cases.vocabulary, data is not None)
        runs = Runs(out, common, cases, seed_values, torch_device, validate_every, progress, max_parallel)
        all_labels = bool(cases.all_labeled)
        experiments = {
            name: remove_unsupported_rows(experiment, len(cases.labeled), all_labels)
            for name, experiment in ALL_EXPERIMENTS.items()
        }
        tables = [name for name in names if name in experiments]
        costs = {}
        if estimate or any(name in TABLES for name in names):
            # The two tables have the same rows.
            arms = experiments[next(iter(TABLES))].arms if set(names) & set(TABLES) else ()
            costs = runs.compute_step_costs(
                [*arms, *(arm for name in tables for arm in experiments[name].arms if estimate)]
            )
        if equal == "compute":
            experiments |= {name: equalize_compute(experiments[name], common.steps, costs) for name in TABLES}

        def get_outcome(name: str) -> Outcome | None:
            paper = PAPER.get(name) if with_paper_numbers else None
            return load_finished_outcome(experiments[name], runs, costs if name in TABLES else None, paper)

        def write_finished() -> None:
            for name in tables:
                if (outcome := get_outcome(name)) is not None:
                    write_tables(outcome, out)
                    partial[name] = outcome

        if estimate:
            seconds = {name: runs.measure_step_times(experiments[name].arms) for name in tables}
        else:
            write_finished()
        if not estimate and not finished_only:
            figure_options = _make_figure_options(more_lists or [], cases, folder, common.grid, percentages, progress)
            if methods == "all":
                figure_options = replace(figure_options, methods=METHODS)
            try:
                make_runs_of(names, replace(runs, run_finished=write_finished), experiments, figure_options)
            except (Cancelled, KeyboardInterrupt, UserError):
                _print_outcomes(partial, len(seed_values), cases.description, out)
                raise
            pictures = [make_figure(name, runs, figure_options, f".{picture}") for name in names if name in FIGURES]
    if estimate:
        for name in tables:
            _print_estimate(experiments[name], runs, costs, seconds[name])
        return
    if finished_only and not partial:
        raise UserError(f"No run of {' and '.join(tables)} in {out} is finished.", "Omit --finished-only to make them.")
    _print_outcomes(partial, len(seed_values), cases.description, out)
    for path in pictures:
        print_line(f"Written: {path} and its numbers, {path.with_suffix('.json').name}")


def _print_estimate(
    experiment: Experiment, runs: Runs, costs: Mapping[str, StepCost], seconds: Mapping[str, float]
) -> None:
    """Print the cost and the time of a step of each row, and the hours that its missing runs would take."""
    from ..evaluation.experiments.definitions import EQUAL
    from ..evaluation.experiments.tables import format_significant

    finished = runs.get_finished_seeds(experiment.arms)
    columns = ("GMAC/step", "Patches/step", "Seconds/step", "of the first row", "Steps", "Missing runs", "Hours")
    rows = make_table(f"{experiment.title}: estimate for {runs.device}", "Network", *columns, numbers=columns)
    total = 0.0
    first = seconds[experiment.arms[0].key]
    for arm in experiment.arms:
        cost, of_arm = costs[arm.key.removesuffix(EQUAL)], seconds[arm.key]
        steps = arm.make_options(runs.common, runs.seeds[0]).steps
        missing = len(runs.seeds) - len(finished.get(arm.key, ()))
        hours = missing * steps * of_arm / 3600
        total += hours
        rows.add_row(
            arm.title, format_significant(cost.macs / 1e9), format_significant(cost.passes), format_significant(of_arm),
            f"{of_arm / first:.2f}", str(steps), str(missing), format_significant(hours),
        )  # fmt: skip
    print_table(rows)
    print_line(
        f"All missing runs: about {format_significant(total)} hours if one runs at a time, "
        "without validation and scoring. Measured on some steps of each stage with random patches."
    )


def _print_outcomes(outcomes: Mapping[str, Outcome], seeds: int, data_description: str, out: Path) -> None:
    """Print the tables and the names of their files."""
    for outcome in outcomes.values():
        _print(outcome, seeds, data_description)
        files = ".csv, .md and .tex" if outcome.is_partial else ".csv, .md, .tex and .json"
        print_line(f"Written: {out / outcome.name}{files}")


def run_learning(
    bundle: str | None, out: Path, cache: Path, seeds: tuple[int, ...], changes: dict[str, Any], device: str
) -> None:
    """Run or resume the experiment ``learning`` in ``out`` and print its table."""
    from ..evaluation.experiments import few_cases
    from ..inference.device import choose_device
    from ..inference.process_settings import keep_freed_memory

    keep_freed_memory()
    model = load_bundle(bundle)
    with progress_bar() as progress:
        outcome = few_cases.run_learning(
            model, out, cache, seeds, changes, device=str(choose_device(device).torch_device), progress=progress
        )
    contents = few_cases.format_rows(outcome, model)
    columns = tuple(contents[0])
    rows = make_table(
        f"{model.metadata.name}: Dice on phantoms of an unknown scanner, {_count_seeds(len(seeds))}",
        *columns,
        numbers=columns[2:],
    )
    for row in contents:
        rows.add_row(*row.values())
    print_table(rows)
    print_line(f"Written: {out / LEARNING}.csv, .md and .json")


def _count_seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"


def _check_names(names: list[str], bundle: str | None, has_more_lists: bool, has_table_options: bool) -> None:
    from ..evaluation.experiments.definitions import ALL_EXPERIMENTS, TABLES
    from ..evaluation.experiments.figures import FIGURES

    available = (*ALL_EXPERIMENTS, *FIGURES)
    for name in names:
        if name == LEARNING:
            raise UserError(f"{LEARNING} cannot be combined with other experiments.", "Run it alone.")
        if name not in available:
            raise UserError(
                f"The experiment '{name}' does not exist.", f"Choose from: {', '.join((*available, LEARNING))}."
            )
    if bundle is not None:
        raise UserError(
            f"--bundle only works with {LEARNING}. The other experiments start from random weights.", "Omit it."
        )
    if has_more_lists and "fig2" not in names:
        raise UserError("--also only works with fig2.", "Omit it, or add fig2.")
    if has_table_options and not set(names) & set(TABLES):
        raise UserError(f"--equal and --show-paper-numbers only work with {' and '.join(TABLES)}.", "Omit them.")


def _make_options(preset: str, changes: dict[str, Any]) -> TrainingOptions:
    from ..evaluation.experiments.definitions import make_anatomies_options, make_small_options

    presets: dict[str, Callable[..., TrainingOptions]] = {
        "small": make_small_options,
        "anatomies": make_anatomies_options,
        "default": TrainingOptions,
        "paper": TrainingOptions.make_paper_preset,
    }
    return presets[preset](**changes)


def _make_figure_options(
    lists: list[Path], data: Data, cache: Path, grid: GridOptions, ratios: tuple[float, ...], progress: Any
) -> Also:
    """Return the options of figures: the labeled cases of each list (fig2) and the ratios."""
    from ..evaluation.experiments.figures import Also
    from ..evaluation.label_ratios import Subset
    from ..training.datalist import read_datalist, require_files
    from ..training.training_set import make_training_set

    if not lists:
        return Also(ratios=ratios)
    subsets = [Subset(f"{data.description}\n({len(data.labeled)})", data.labeled)]
    for path in lists:
        datalist = read_datalist(path)
        require_files(datalist)
        if datalist.vocabulary != data.vocabulary:
            raise UserError(
                f"{path} has the organs of {datalist.vocabulary.name}, not of {data.vocabulary.name}.",
                "Compare lists with the same vocabulary.",
            )
        labeled = make_training_set(datalist).cases(cache, grid, progress)[0]
        subsets.append(Subset(f"{datalist.name}\n({len(labeled)})", labeled))
    return Also(tuple(subsets), ratios)


def _prepare_data(
    data: Path | None, anatomies: Path | None, phantoms: tuple[int, ...], cache: Path, grid: GridOptions, progress: Any
) -> Data:
    """Prepare the cases of a list, of real anatomies, or of phantoms."""
    from ..evaluation.experiments.anatomies import make_anatomies_training_set
    from ..evaluation.experiments.runs import Data
    from ..organs import AMOS
    from ..training.datalist import read_datalist, require_files
    from ..training.sources import TEST_SEEDS, Phantoms
    from ..training.training_set import TrainingSet, make_test_sources, make_training_set

    if anatomies is not None:
        (training_set, test, description), vocabulary = make_anatomies_training_set(anatomies), AMOS
    elif data is None:
        if len(phantoms) != 4 or min(phantoms) < 1:
            raise UserError(
                "--phantoms needs four numbers of at least 1.", "Write them like this: --phantoms 4,16,4,6."
            )
        training_set, vocabulary = TrainingSet.from_phantoms(*phantoms[:3]), AMOS
        test = TrainingSet((Phantoms(TEST_SEEDS, phantoms[3]),))
        description = (
            f"phantoms: {phantoms[0]} labeled, {phantoms[1]} unlabeled, {phantoms[2]} for validation, {phantoms[3]} "
            "for testing"
        )
    else:
        datalist = read_datalist(data)
        require_files(datalist)
        if not any(entry.label is not None for entry in datalist.test):
            raise UserError(f"{data} has no labeled test case.", "Make the list with dca dataset folder --test.")
        training_set, vocabulary, description = make_training_set(datalist), datalist.vocabulary, datalist.name
        test = TrainingSet(make_test_sources(datalist))
    labeled, unlabeled, validation = training_set.cases(cache, grid, progress)
    test_cases = test.cases(cache, grid, progress)[0]
    all_cases = training_set.to_fully_labeled().cases(cache, grid, progress)[0]
    all_labeled = all_cases if all(case.labels is not None for case in all_cases) else ()
    return Data(vocabulary, labeled, unlabeled, validation, test_cases, all_labeled, description)


def _print(outcome: Outcome, seeds: int, data_description: str) -> None:
    from ..evaluation.experiments.tables import format_group_title, make_further_columns, summarize_outcome

    groups = [group for group, labels in outcome.groups.items() if labels]
    columns = ("Dice", "± over seeds", "ASD (mm)", *groups)
    more_columns = make_further_columns(outcome)
    title = f"{outcome.experiment.title}: {data_description}, {_count_seeds(seeds)}"
    title += "; finished runs" * outcome.is_partial
    rows = make_table(title, "Network", *columns, numbers=columns)
    arms = outcome.experiment.arms
    # The group of methods is not needed here, but the fraction of labeled cases is.
    names = [", ".join(filter(None, (arm.title, format_group_title(arm, outcome) * (not arm.group)))) for arm in arms]
    for name, arm in zip(names, summarize_outcome(outcome)["arms"].values(), strict=True):
        values = (arm["dice"], arm["deviation_over_seeds"], arm["asd_mm"], *(arm["dice_by_group"][g] for g in groups))
        rows.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    print_table(rows)
    paper = {title: cells for title, cells in more_columns.items() if title.startswith("Paper: ")}
    other = {title: cells for title, cells in more_columns.items() if title not in paper}
    # Separate tables, because terminals are not wide enough for all columns.
    for title, part in (("Runs and cost", other), ("The paper's numbers", paper)):
        if not part:
            continue
        more_rows = make_table(title, "Network", *(column.removeprefix("Paper: ") for column in part))
        for name, arm in zip(names, arms, strict=True):
            more_rows.add_row(name, *(cells.get(arm.key, "") for cells in part.values()))
        print_table(more_rows)
