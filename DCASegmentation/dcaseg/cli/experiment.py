"""``dca experiment``: the paper's tables and figures, run and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UserError
from .bundle import load
from .console import output, progress_bar, say, says_when_cancelled, show, table
from .option_values import DeviceOption, PreprocessingOption, SpacingOption, changes_of, numbers, whole_numbers
from .option_values import patch as patch_of

if TYPE_CHECKING:
    from ..evaluation.experiments.figures import Also
    from ..evaluation.experiments.runs import Data
    from ..evaluation.experiments.tables import Outcome
    from ..training.options import GridOptions, TrainingOptions

LEARNING = "learning"
_MODEL = "dca-synthetic"


def run_learning(
    bundle: str | None, out: Path, cache: Path, seeds: tuple[int, ...], steps: int | None, device: str
) -> None:
    """Run or resume it in ``out`` and print its table."""
    from ..evaluation.experiments import few_cases as learning
    from ..inference.device import choose_device
    from ..inference.process_settings import keep_freed_memory

    keep_freed_memory()
    model = load(bundle or _MODEL)
    changes = {} if steps is None else {"steps": steps}
    with progress_bar() as progress:
        outcome = learning.run_learning(
            model, out, cache, seeds, changes, device=str(choose_device(device).torch_device), progress=progress
        )
    made = learning.rows(outcome, model)
    columns = tuple(made[0])
    shown = table(
        f"{model.metadata.name}, synthetic people of one scanner it does not know: Dice, {len(seeds)} seeds",
        *columns,
        numbers=columns[2:],
    )
    for row in made:
        shown.add_row(*row.values())
    show(shown)
    say(f"Written: {out / LEARNING}.csv, .md and .json")


NAME = "experiment"
EXAMPLES = "Example: dca experiment table3 table4 baselines -o experiments/phantoms --seeds 0,1,2"


def run(
    names: Annotated[
        list[str],
        typer.Argument(
            help="One or several of table1, table2 (all systems), table3, table4, table5, baselines, fig1, fig2, fig5 "
            "to fig8; or learning."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of runs, tables and figures; shared by all.")],
    data: Annotated[Path | None, typer.Option(help="A list of CTs (dca dataset). Else synthetic people.")] = None,
    anatomies: Annotated[
        Path | None,
        typer.Option(
            help="The benchmark on real anatomies instead of synthetic people: the folder with a folder for each of "
            "its label maps. Goes with --preset anatomies."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the runs. Figures 5, 6 and 8 show the first.")] = "0,1,2",
    preset: Annotated[
        Literal["small", "anatomies", "default", "paper"] | None,
        typer.Option(
            help="small: 6 mm, 4 filters, 2000 steps, for a CPU. anatomies: 5 mm, 8 filters, 6000 steps; the one for "
            "--anatomies. Else small."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of each run in steps.")] = None,
    filters: Annotated[int | None, typer.Option(min=1, help="Channels of the network at full resolution.")] = None,
    patch: Annotated[str | None, typer.Option(help="Patch in voxels, one side or depth,height,width.")] = None,
    preprocessing: PreprocessingOption = None,
    spacing: SpacingOption = None,
    people: Annotated[
        str, typer.Option(help="Synthetic people: labelled, unlabelled, to validate and to test on.")
    ] = "4,16,4,6",
    also: Annotated[
        list[Path] | None, typer.Option(help="fig2: further lists whose labelled parts are ranked. May be repeated.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="fig2 of one list: percent of its cases that are labelled.")
    ] = "10,20,40,100",
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared cases. Else OUT/cases.")] = None,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 500,
    bundle: Annotated[
        str | None, typer.Option(help="For learning: the model to go on from. Else dca-synthetic.")
    ] = None,
    max_parallel: Annotated[
        int, typer.Option(min=1, help="Runs made at the same time, on a GPU too; they share the processor's cores.")
    ] = 1,
    equal: Annotated[
        Literal["steps", "compute"],
        typer.Option(help="table1, table2: all with the same steps, or with the multiply-accumulates of DCA's run."),
    ] = "steps",
    beside_paper: Annotated[
        bool, typer.Option("--beside-paper", help="table1, table2: the paper's own numbers, too, with their protocol.")
    ] = False,
    systems: Annotated[
        Literal["baselines", "all"], typer.Option(help="fig1, fig5, fig6: the methods of baselines, or of table1.")
    ] = "baselines",
    picture: Annotated[Literal["png", "pdf", "svg"], typer.Option(help="The figures' format.")] = "png",
    device: DeviceOption = "auto",
) -> None:
    """Train and compare the networks of the paper's tables or figures, each with several seeds, and write them.

    **learning** asks instead what a model learns from 1, 2 and 4 corrected cases of a scanner it does not know, with
    and without unlabelled ones, on synthetic people; it takes --seeds, --steps, --cache and --device.

    What is done is kept: call it again to go on after Ctrl+C, or with another table to add its runs; figures use the
    runs that tables have made, and the other way round. Several names in one call share their runs from the start,
    which keeps --at-once busy to the end. Scores are those of the test cases on the model's grid.
    """
    from ..evaluation.experiments.definitions import (
        ALL_EXPERIMENTS,
        SYSTEMS,
        TABLES,
        equal_compute,
        require_data,
        without_rows_that_need_labels,
    )
    from ..evaluation.experiments.figures import FIGURES, make_figure
    from ..evaluation.experiments.runs import Runs
    from ..evaluation.experiments.tables import PAPER, make_runs_of, run_experiment
    from ..inference.device import choose_device
    from ..inference.process_settings import keep_freed_memory

    if names == [LEARNING]:
        if data is not None or any(given is not None for given in (filters, patch, spacing, preprocessing)):
            raise UserError(
                "learning has data, grid and network of its own.", "Leave out --data and what is said of the network."
            )
        if max_parallel > 1:
            raise UserError("learning makes one run after the other.", "Leave out --at-once.")
        run_learning(bundle, out, cache or out / "cases", whole_numbers(seeds, "--seeds", "0,1,2"), steps, device)
        return
    _check_names(names, bundle, bool(also), equal != "steps" or beside_paper)
    changes: dict[str, Any] = {"steps": steps, "n_filters": filters}
    changes = {key: value for key, value in changes.items() if value is not None}
    if patch is not None:
        changes["patch"] = patch_of(patch, smallest=32)
    if anatomies is not None and data is not None:
        raise UserError("--data and --anatomies are both given.", "Choose one of them.")
    common = _options(preset or ("anatomies" if anatomies else "small"), changes_of(preprocessing, spacing) | changes)
    drawn = whole_numbers(seeds, "--seeds", "0,1,2")
    counts = whole_numbers(people, "--people", "4,16,4,6")
    percent = numbers(ratios, "--ratios", len(ratios.split(",")))
    if not all(0 < one <= 100 for one in percent):
        raise UserError(f"--ratios '{ratios}' are not percent.", "Write it like --ratios 10,20,40,100.")
    keep_freed_memory()
    folder = cache or out / "cases"
    kept = f"What is done is kept in {out}. To go on, run the same command again."
    with says_when_cancelled(lambda: kept), progress_bar() as progress:
        cases = _data(data, anatomies, counts, folder, common.grid, progress)
        on = str(choose_device(device).torch_device)
        for name in names:
            require_data(name, cases.vocabulary, data is not None)
        runs = Runs(out, common, cases, drawn, on, validate_every, progress, max_parallel)
        experiments, costs = dict(ALL_EXPERIMENTS), {}
        for name in TABLES:
            experiments[name] = without_rows_that_need_labels(experiments[name], bool(cases.all_labelled))
        if any(name in TABLES for name in names):
            # The two tables have the same rows.
            costs = runs.costs(experiments[next(iter(TABLES))].arms)
        if equal == "compute":
            experiments |= {name: equal_compute(experiments[name], common.steps, costs) for name in TABLES}
        further = _also(also or [], cases, folder, common.grid, percent, progress)
        if systems == "all":
            further = replace(further, methods=SYSTEMS)
        make_runs_of(names, runs, experiments, further)
        outcomes = {
            name: run_experiment(
                experiments[name],
                runs,
                costs if name in TABLES else None,
                PAPER.get(name) if beside_paper else None,
            )
            for name in names
            if name in experiments
        }
        pictures = [make_figure(name, runs, further, f".{picture}") for name in names if name in FIGURES]
    for name, outcome in outcomes.items():
        _print(outcome, len(drawn), cases.told)
        say(f"Written: {out / name}.csv, .md, .tex and .json")
    for path in pictures:
        say(f"Written: {path} and {path.with_suffix('.json').name}, the numbers in it")


def _check_names(names: list[str], bundle: str | None, also: bool, for_systems: bool) -> None:
    from ..evaluation.experiments.definitions import ALL_EXPERIMENTS, TABLES
    from ..evaluation.experiments.figures import FIGURES

    known = (*ALL_EXPERIMENTS, *FIGURES)
    for name in names:
        if name == LEARNING:
            raise UserError(f"{LEARNING} has a folder of runs of its own.", "Call it by itself.")
        if name not in known:
            raise UserError(f"There is no experiment '{name}'.", f"Choose from: {', '.join((*known, LEARNING))}.")
    if bundle is not None:
        raise UserError(f"--bundle is for {LEARNING}.", f"{', '.join(names)} start from nothing.")
    if also and "fig2" not in names:
        raise UserError("Only fig2 has further lists to compare.", "Leave --also out.")
    if for_systems and not set(names) & set(TABLES):
        raise UserError(f"--equal and --beside-paper are for {' and '.join(TABLES)}.", "Leave them out.")


def _options(preset: str, changes: dict[str, Any]) -> TrainingOptions:
    from ..evaluation.experiments.definitions import anatomies_options, small_options
    from ..training.options import TrainingOptions

    presets: dict[str, Callable[..., TrainingOptions]] = {
        "small": small_options,
        "anatomies": anatomies_options,
        "default": TrainingOptions,
        "paper": TrainingOptions.paper,
    }
    return presets[preset](**changes)


def _also(
    lists: list[Path], data: Data, cache: Path, grid: GridOptions, ratios: tuple[float, ...], progress: Any
) -> Also:
    """The labelled parts of further lists after that of the first."""
    from ..evaluation.experiments.figures import Also
    from ..evaluation.label_ratios import Subset
    from ..training.datalist import read_datalist, require_files
    from ..training.training_set import training_set_of

    if not lists:
        return Also(ratios=ratios)
    subsets = [Subset(f"{data.told}\n({len(data.labelled)})", data.labelled)]
    for path in lists:
        datalist = read_datalist(path)
        require_files(datalist)
        if datalist.vocabulary != data.vocabulary:
            raise UserError(f"{path} has the organs of {datalist.vocabulary.name}.", "Compare lists of one vocabulary.")
        labelled = training_set_of(datalist).cases(cache, grid, progress)[0]
        subsets.append(Subset(f"{datalist.name}\n({len(labelled)})", labelled))
    return Also(tuple(subsets), ratios)


def _data(
    data: Path | None, anatomies: Path | None, people: tuple[int, ...], cache: Path, grid: GridOptions, progress: Any
) -> Data:
    from ..evaluation.experiments.anatomies import anatomies_training_set
    from ..evaluation.experiments.runs import Data
    from ..organs import AMOS
    from ..training.datalist import read_datalist, require_files
    from ..training.sources import TEST_SEEDS, Phantoms
    from ..training.training_set import TrainingSet, sources_of_test, training_set_of

    if anatomies is not None:
        (cohort, test, told), vocabulary = anatomies_training_set(anatomies), AMOS
    elif data is None:
        if len(people) != 4 or min(people) < 1:
            raise UserError("--people takes four numbers from 1 on.", "Write it like --people 4,16,4,6.")
        cohort, vocabulary = TrainingSet.of_phantoms(*people[:3]), AMOS
        test = TrainingSet((Phantoms(TEST_SEEDS, people[3]),))
        told = f"synthetic people: {people[0]} labelled, {people[1]} unlabelled, {people[2]} and {people[3]} held out"
    else:
        datalist = read_datalist(data)
        require_files(datalist)
        if not any(entry.label is not None for entry in datalist.test):
            raise UserError(f"{data} has no labelled case to test on.", "Make it with dca dataset folder --test.")
        cohort, vocabulary, told = training_set_of(datalist), datalist.vocabulary, datalist.name
        test = TrainingSet(sources_of_test(datalist))
    labelled, unlabelled, validation = cohort.cases(cache, grid, progress)
    tested = test.cases(cache, grid, progress)[0]
    every = cohort.fully_labelled().cases(cache, grid, progress)[0]
    known = [case for case in every if case.labels is not None]
    return Data(vocabulary, labelled, unlabelled, validation, tested, known if len(known) == len(every) else (), told)


def _print(outcome: Outcome, seeds: int, told: str) -> None:
    from ..evaluation.experiments.tables import further_columns, summary

    groups = [group for group, labels in outcome.groups.items() if labels]
    columns = ("Dice", "± over seeds", "ASD (mm)", *groups)
    further = further_columns(outcome)
    shown = table(f"{outcome.experiment.title}: {told}, {seeds} seeds", "Network", *columns, numbers=columns)
    for arm in summary(outcome)["arms"].values():
        values = (arm["dice"], arm["deviation_over_seeds"], arm["asd_mm"], *(arm["dice_by_group"][g] for g in groups))
        shown.add_row(
            arm["title"],
            *("-" if value is None else f"{value:.3f}" for value in values),
        )
    show(shown)
    if further:
        # A table of its own: a terminal is not wide enough for both.
        beside = table("Cost and the paper's numbers" if outcome.paper else "Cost", "Network", *further)
        for arm in outcome.experiment.arms:
            beside.add_row(arm.title, *(cells.get(arm.title, "") for cells in further.values()))
        output().print(beside)
