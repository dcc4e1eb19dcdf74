"""``dca train``: a network from labelled and unlabelled cases."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UserError
from .bundle import load
from .console import output, progress_bar, say_plain, table, warn
from .values import patch as patch_of
from .values import spacing as spacing_of

if TYPE_CHECKING:
    from ..training.options import TrainingOptions
    from ..training.trainer import Trainer

NAME = "train"
EXAMPLES = "Example: dca train -o runs/first --labelled 24 --unlabelled 16 --validation 4 --steps 6000"

CURVE = "curve.png"

Preset = Literal["default", "paper"]


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints, log, learning curve.")],
    labelled: Annotated[int, typer.Option(min=1, help="Synthetic people with labels.")] = 24,
    unlabelled: Annotated[int, typer.Option(min=0, help="Synthetic people without labels.")] = 16,
    validation: Annotated[int, typer.Option(min=0, help="Synthetic people to validate on.")] = 4,
    init: Annotated[
        str | None, typer.Option(help="Folder or name of a model whose weights the run starts from.")
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="Our defaults, or the paper's settings (needs a large GPU).")
    ] = "default",
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the whole run in steps.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop after this time; --resume goes on.")] = None,
    filters: Annotated[int | None, typer.Option(min=1, help="Channels of the network at full resolution.")] = None,
    patch: Annotated[str | None, typer.Option(help="Patch in voxels, one side or depth,height,width.")] = None,
    spacing: Annotated[str | None, typer.Option(help="Voxel size of the model's grid in mm, as x,y,z.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Patches of each kind, labelled and unlabelled, in a step.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-8, help="Highest learning rate.")] = None,
    experts_first: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of the steps for the experts; then the aggregation decoder learns."),
    ] = None,
    class_balance: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="How much more small organs weigh in the cross-entropy.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything drawn at random.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of prepared cases, shared by runs. Else OUT/cases.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own options.")] = False,
) -> None:
    """Train DCA on synthetic CT, semi-supervised: some people with labels, some without.

    Training on CT of your own comes later. Ctrl+C saves the run; --resume goes on exactly where it stopped. Then make
    a model of it with **dca bundle pack**.
    """
    from ..inference.allocator import keep_freed_memory
    from ..inference.device import choose_device
    from ..organs import AMOS
    from ..training.cohort import Cohort
    from ..training.run_record import InitialModel, RunRecord, read_record, write_record
    from ..training.trainer import CHECKPOINT, Trainer

    keep_freed_memory()
    torch_device = str(choose_device(device).torch_device)
    changes: dict[str, Any] = {}
    if patch is not None:
        # The deepest features have a sixteenth of a side; a single voxel there has no statistics to normalize by.
        changes["patch"] = patch_of(patch, smallest=32)
    if batch is not None:
        changes |= {"labelled_per_step": batch, "unlabelled_per_step": batch}
    given = {
        **{"steps": steps, "n_filters": filters, "learning_rate": learning_rate, "seed": seed},
        **{"experts_first": experts_first, "class_balance": class_balance},
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    initial = None if init is None else load(init)
    if resume:
        record = read_record(out)
        unchangeable = sorted(set(changes) - {"steps"}) + ["spacing"] * (spacing is not None)
        if init is not None:
            unchangeable.append("init")
        if unchangeable:
            raise UserError(
                f"A resumed run keeps its options; {', '.join(unchangeable)} cannot be changed.",
                "Leave them out, or train in a new folder.",
            )
        options, cohort, started_from = _with(record.options, **changes), record.cohort, record.initial
    else:
        if (out / CHECKPOINT).exists():
            raise UserError(f"{out} holds a run already.", "Add --resume to go on with it, or choose another folder.")
        options = _options(preset, None if spacing is None else spacing_of(spacing), changes)
        cohort = Cohort.of_phantoms(labelled, unlabelled, validation)
        started_from = None if initial is None else InitialModel.of(initial)
    folder = cache or out / "cases"
    with progress_bar() as progress:
        groups = cohort.cases(folder, options.grid, progress)
    trainer = Trainer(
        out, options, AMOS, *groups, device=torch_device, initial=None if initial is None else initial.network()
    )
    if resume:
        trainer.resume()
    write_record(out, RunRecord(AMOS, options, cohort, trainer.partition, started_from))
    for warning in trainer.partition.warnings:
        warn(warning)
    _train(trainer, minutes, validate_every)
    _plot_curve(trainer)
    say_plain(f"The run is in {out}, at step {trainer.step} of {options.steps}.")
    if trainer.step < options.steps:
        say_plain(f"Go on with: dca train -o {out} --resume" + (f" --cache {cache}" if cache else ""))
    elif trainer.best >= 0:
        say_plain(f"Make a model of it with: dca bundle pack {out} -o BUNDLE")


def _options(preset: Preset, spacing: tuple[float, float, float] | None, changes: dict[str, Any]) -> TrainingOptions:
    from ..training.options import GridOptions, TrainingOptions

    if spacing is not None:
        changes = {**changes, "grid": GridOptions(spacing=spacing)}
    return TrainingOptions.paper(**changes) if preset == "paper" else TrainingOptions(**changes)


def _with(options: TrainingOptions, **changes: Any) -> TrainingOptions:
    from dataclasses import replace

    return replace(options, **changes)


def _train(trainer: Trainer, minutes: float | None, validate_every: int) -> None:
    """Train with a bar that shows the last losses, λ and Dice; then a table of the last validation."""
    started, first = time.monotonic(), trainer.step
    dice: dict[str, float] = {}

    with progress_bar() as progress:

        def report(line: dict[str, Any]) -> None:
            dice.update(line.get("dice", {}))
            done = (line["step"] - first) / max(trainer.options.steps - first, 1)
            if minutes:
                done = max(done, (time.monotonic() - started) / (60 * minutes))
            progress(min(done, 1.0), _summary(line, trainer.options.steps, dice))

        trainer.run(minutes=minutes, validate_every=validate_every, report=report)
    if dice:
        shown = table("Dice in the last validation", "Organ", "Dice", numbers=("Dice",))
        for organ in trainer.vocabulary:
            if organ.key in dice:
                shown.add_row(organ.name, f"{dice[organ.key]:.3f}")
        shown.add_section()
        shown.add_row("Mean", f"{dice['mean']:.3f}")
        output().print(shown)


def _plot_curve(trainer: Trainer) -> None:
    """The learning curve so far, as ``curve.png`` in the run's folder."""
    from ..evaluation.figures.training_curve import read_log, training_curve
    from ..training.trainer import LOG

    if (trainer.folder / LOG).exists():
        figure = training_curve(read_log(trainer.folder / LOG), trainer.vocabulary, trainer.folder.name)
        unfinished = trainer.folder / ".curve.partial.png"
        figure.savefig(unfinished)
        unfinished.replace(trainer.folder / CURVE)


def _summary(line: dict[str, Any], steps: int, dice: dict[str, float]) -> str:
    losses = (f"{name} {line[name]:.2f}" for name in ("head", "medium", "tail", "aggregation") if name in line)
    parts = [f"step {line['step']}/{steps}", *losses, f"λ {line.get('weight', 0.0):.2f}"]
    if dice:
        parts.append(f"Dice {dice['mean']:.3f}")
    return "  ".join(parts)
