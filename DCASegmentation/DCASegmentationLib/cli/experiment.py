"""``dca experiment``: the paper's tables, run and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UserError
from .console import output, progress_bar, say_plain, table
from .values import patch as patch_of
from .values import spacing as spacing_of
from .values import whole_numbers

if TYPE_CHECKING:
    from ..evaluation.experiments.running import Data, Outcome
    from ..training.options import GridOptions

NAME = "experiment"
EXAMPLES = "Example: dca experiment table3 -o experiments/phantoms --seeds 0,1,2"


def run(
    name: Annotated[str, typer.Argument(help="table3, table4, table5, or baselines (as Tables 1 and 2).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the runs and tables; shared by experiments.")],
    data: Annotated[Path | None, typer.Option(help="A list of CTs (dca dataset). Else synthetic people.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the runs.")] = "0,1,2",
    preset: Annotated[
        Literal["small", "default", "paper"], typer.Option(help="small: 6 mm, 4 filters, 1000 steps, for a CPU.")
    ] = "small",
    steps: Annotated[int | None, typer.Option(min=1, help="Length of each run in steps.")] = None,
    filters: Annotated[int | None, typer.Option(min=1, help="Channels of the network at full resolution.")] = None,
    patch: Annotated[str | None, typer.Option(help="Patch in voxels, one side or depth,height,width.")] = None,
    spacing: Annotated[str | None, typer.Option(help="Voxel size of the model's grid in mm, as x,y,z.")] = None,
    people: Annotated[
        str, typer.Option(help="Synthetic people: labelled, unlabelled, to validate and to test on.")
    ] = "4,16,4,6",
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared cases. Else OUT/cases.")] = None,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 100,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
) -> None:
    """Train and compare the networks of one of the paper's tables, each with several seeds, and write the table.

    What is done is kept: call it again to go on after Ctrl+C, or with another table to add its runs. Scores are those
    of the test cases on the model's grid.
    """
    from ..evaluation.experiments.definitions import EXPERIMENTS, small_options
    from ..evaluation.experiments.running import run_experiment
    from ..inference.allocator import keep_freed_memory
    from ..inference.device import choose_device
    from ..training.options import GridOptions, TrainingOptions

    if name not in EXPERIMENTS:
        raise UserError(f"There is no experiment '{name}'.", f"Choose one of: {', '.join(EXPERIMENTS)}.")
    changes: dict[str, Any] = {"steps": steps, "n_filters": filters}
    changes = {key: value for key, value in changes.items() if value is not None}
    if patch is not None:
        changes["patch"] = patch_of(patch, smallest=32)
    if spacing is not None:
        changes["grid"] = GridOptions(spacing=spacing_of(spacing))
    presets: dict[str, Callable[..., TrainingOptions]] = {
        "small": small_options,
        "default": TrainingOptions,
        "paper": TrainingOptions.paper,
    }
    common = presets[preset](**changes)
    drawn = whole_numbers(seeds, "--seeds", "0,1,2")
    keep_freed_memory()
    with progress_bar() as progress:
        cases = _data(
            data, whole_numbers(people, "--people", "4,16,4,6"), cache or out / "cases", common.grid, progress
        )
        outcome = run_experiment(
            EXPERIMENTS[name],
            common,
            cases,
            out,
            drawn,
            str(choose_device(device).torch_device),
            validate_every,
            progress,
        )
    _print(outcome, len(drawn), cases.told)
    say_plain(f"Written: {out / name}.csv, .md, .tex and .json")


def _data(data: Path | None, people: tuple[int, ...], cache: Path, grid: GridOptions, progress: Any) -> Data:
    from ..evaluation.experiments.running import Data
    from ..organs import AMOS
    from ..training.cohort import Cohort
    from ..training.cohort_of_list import cohort_of, sources_of_test
    from ..training.datalist import read_datalist, require_files
    from ..training.sources.phantoms import TEST_SEEDS, Phantoms

    if data is None:
        if len(people) != 4 or min(people) < 1:
            raise UserError("--people takes four numbers from 1 on.", "Write it like --people 4,16,4,6.")
        cohort, vocabulary = Cohort.of_phantoms(*people[:3]), AMOS
        test = Cohort((Phantoms(TEST_SEEDS, people[3]),))
        told = f"synthetic people: {people[0]} labelled, {people[1]} unlabelled, {people[2]} and {people[3]} held out"
    else:
        datalist = read_datalist(data)
        require_files(datalist)
        if not any(entry.label is not None for entry in datalist.test):
            raise UserError(f"{data} has no labelled case to test on.", "Make it with dca dataset folder --test.")
        cohort, vocabulary, told = cohort_of(datalist), datalist.vocabulary, datalist.name
        test = Cohort(sources_of_test(datalist))
    labelled, unlabelled, validation = cohort.cases(cache, grid, progress)
    tested = test.cases(cache, grid, progress)[0]
    every = cohort.fully_labelled().cases(cache, grid, progress)[0]
    known = [case for case in every if case.labels is not None]
    return Data(vocabulary, labelled, unlabelled, validation, tested, known if len(known) == len(every) else (), told)


def _print(outcome: Outcome, seeds: int, told: str) -> None:
    from ..evaluation.experiments.running import summary

    groups = [group for group, labels in outcome.groups.items() if labels]
    columns = ("Dice", "± over seeds", "ASD (mm)", *groups)
    shown = table(f"{outcome.experiment.title}: {told}, {seeds} seeds", "Network", *columns, numbers=columns)
    for arm in summary(outcome)["arms"].values():
        values = (arm["dice"], arm["deviation_over_seeds"], arm["asd_mm"], *(arm["dice_by_group"][g] for g in groups))
        shown.add_row(arm["title"], *("-" if value is None else f"{value:.3f}" for value in values))
    output().print(shown)
