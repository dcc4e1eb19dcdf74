"""``dca train``: train a network on labeled and unlabeled cases."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .console import cancellation_message, make_table, print_line, print_table, progress_bar, warn
from .field_options import expand
from .option_values import require_new_file
from .options import require_unchanged_options
from .train_data import get_case_warnings, get_group_warnings
from .train_options import DataGroup, ModelGroup, RunGroup, ScheduleGroup, SynthesisGroup
from .train_setup import plan_new_run, plan_resumed_run

if TYPE_CHECKING:
    from ..training.checkpoints import RunRecord
    from ..training.compact_state import Detail
    from ..training.trainer import Trainer

NAME = "train"
EXAMPLES = (
    "Example: dca train -o runs/first --data list.json, with a list made by dca dataset folder my-cts -o list.json"
)

CURVE = "curve.png"

# The options that a resumed run may have: its length, and how it is computed.
RESUMABLE = {"out", "cache", "steps", "minutes", "validate_every", "save_every"} | {
    item.name for item in fields(RunGroup)
}


@expand
def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints, log and learning curve.")],
    data: DataGroup,
    synthesis: SynthesisGroup,
    model: ModelGroup,
    schedule: ScheduleGroup,
    running: RunGroup,
) -> None:
    """Train DCA on your own CTs, only some of which need label maps, or on synthetic CTs.

    Synthetic CTs are phantoms (see **dca phantom**) or made from label maps (see **dca synthesize**).

    Ctrl+C finishes the current step and saves the run; **--resume** continues it exactly. A second Ctrl+C stops
    immediately, and **--resume** continues from the last checkpoint. To make a model from the run, use
    **dca bundle export**.

    With **--init MODEL** and **--data** alone, the model is fine-tuned: grid, network and organ groups stay the same,
    and a short run uses a low learning rate. Any option that you give overrides this.

    To use several GPUs, replace **dca** by **torchrun --nproc-per-node 4 -m dcaseg.cli**. The batch is the total over
    all GPUs.
    """
    from ..file_lock import locked_folder
    from ..inference.device import choose_device
    from ..inference.process_settings import keep_freed_memory
    from ..training.checkpoints import RunRecord, write_record
    from ..training.distributed import get_local_device, join, leave
    from ..training.export import is_exportable
    from ..training.run_folder import LOCK
    from ..training.trainer import Trainer

    keep_freed_memory()
    torch_device = get_local_device(choose_device(running.device).torch_device)
    processes = join(torch_device)
    if running.resume and running.from_state is not None:
        raise UserError("--resume and --from-state cannot be combined.", "Specify only one of them.")
    if running.export_state is not None and processes.first:
        require_new_file(running.export_state, overwrite=False)
    if running.resume or running.from_state is not None:
        require_unchanged_options(context, RESUMABLE)
        plan = plan_resumed_run(out, running.from_state, schedule)
    else:
        plan = plan_new_run(out, data, synthesis, model, schedule)
    with ExitStack() as stack:
        if processes.first:
            stack.enter_context(locked_folder(out, LOCK))
        options = plan.options
        folder = data.cache or out / "cases"
        stream = plan.training_set.stream
        workers = running.workers
        if workers is None:
            # Synthetic CTs are rendered on the GPU, which worker processes cannot share.
            only_cases = torch_device.type == "cuda" and stream is None
            workers = min(4, (os.cpu_count() or 2) - 1) if only_cases else 0
        rendering = str(torch_device) if torch_device.type == "cuda" and workers == 0 else "cpu"
        if not processes.first:
            # The first process fills the cache. Only that process prints.
            processes.wait()
        recipes = None
        with progress_bar() as progress:
            if stream is not None:
                progress(0.0, "Reading the label maps")
                recipes = stream.make_sampler(folder, options, rendering)
            cases = plan.training_set.cases(folder, options.grid, progress if processes.first else None)
        if processes.first:
            processes.wait()
        trainer = Trainer(
            out, options, plan.vocabulary, *cases, device=str(torch_device), initial=plan.network, groups=plan.groups,
            sampler=stream.mix_samplers(recipes, cases[0], options) if stream and recipes else None,
            anatomies=recipes.anatomies if recipes else (),
        )  # fmt: skip
        if running.resume:
            trainer.resume()
        elif running.from_state is not None:
            trainer.resume(running.from_state)
        record = RunRecord(
            plan.vocabulary, trainer.options, plan.training_set, trainer.partition, plan.initial,
            schedule.validate_every or plan.validate_every, schedule.save_every or plan.save_every,
        )  # fmt: skip
        if processes.first:
            write_record(out, record)
            for warning in (
                *get_group_warnings(trainer.partition, plan.vocabulary, options.strategy),
                *get_case_warnings(plan.training_set, cases, options, recipes),
            ):
                warn(warning)
            if running.from_state is not None:
                # From now on the folder contains a run.
                trainer.save()
        resume_command = f"dca train -o {out} --resume" + (f" --cache {data.cache}" if data.cache else "")
        with cancellation_message(
            lambda: f"The run is saved in {out} at step {trainer.step}. To continue: {resume_command}"
        ):
            _train(trainer, schedule.minutes, record, running.tensorboard, workers)
        if running.export_state is not None:
            detail = trainer.export(running.export_state, record.to_json())
    leave()
    if not processes.first:
        return
    _plot_curve(trainer)
    print_line(f"The run is in {out} at step {trainer.step} of {options.steps}.")
    if running.export_state is not None and detail is not None:
        print_line(
            f"Written: {running.export_state} ({_describe(detail)}). "
            "To continue from it: dca train -o NEW --from-state FILE"
        )
    if trainer.step < options.steps:
        print_line(f"To continue: {resume_command}")
    elif is_exportable(options):
        print_line(f"To make a model from it: dca bundle export {out} -o BUNDLE")


def _describe(detail: Detail) -> str:
    parts = [
        f"weights in {detail.weights} bits",
        f"their EMA in {detail.average} more bits",
        f"moments in {detail.moments} bits",
    ]
    return ", ".join(part for part, bits in zip(parts, (1, detail.average, detail.moments), strict=True) if bits)


def _train(trainer: Trainer, minutes: float | None, record: RunRecord, tensorboard: bool, workers: int) -> None:
    """Train with a progress bar that shows the last losses, λ and Dice. Then print a table of the last validation."""
    from ..training.tensorboard import TensorBoardLog

    started, first_step = time.monotonic(), trainer.step
    board = None
    if tensorboard and trainer.processes.first:
        board = TensorBoardLog(trainer.folder, trainer.vocabulary, trainer.partition, trainer.options)
    dice: dict[str, float] = {}

    with progress_bar() as progress:

        def report(line: dict[str, Any]) -> None:
            dice.update(line.get("dice", {}))
            if board is not None:
                board.add(line)
                if "dice" in line:
                    board.add_example(trainer.evaluated_network, trainer.validation[0], line["step"])
            fraction = (line["step"] - first_step) / max(trainer.options.steps - first_step, 1)
            if minutes:
                fraction = max(fraction, (time.monotonic() - started) / (60 * minutes))
            progress(min(fraction, 1.0), _format_progress(line, trainer.options.steps, dice))

        try:
            trainer.run(minutes, record.save_every, record.validate_every, report, warn, False, workers)
        finally:
            if board is not None:
                board.close()
    if dice:
        rows = make_table("Dice in the last validation", "Organ", "Dice", numbers=("Dice",))
        for organ in trainer.vocabulary:
            if organ.key in dice:
                rows.add_row(organ.name, f"{dice[organ.key]:.3f}")
        rows.add_section()
        rows.add_row("Mean", f"{dice['mean']:.3f}")
        print_table(rows)


def _plot_curve(trainer: Trainer) -> None:
    """Draw the learning curve so far as ``curve.png`` in the folder of the run."""
    from ..evaluation.figures.curves import plot_training_curve, read_log
    from ..evaluation.figures.style import save_figure
    from ..training.run_folder import LOG

    if (trainer.folder / LOG).exists():
        save_figure(
            plot_training_curve(read_log(trainer.folder / LOG), trainer.vocabulary, trainer.folder.name),
            trainer.folder / CURVE,
        )


def _format_progress(line: dict[str, Any], steps: int, dice: dict[str, float]) -> str:
    losses = (
        f"{name} {line[name]:.2f}"
        for name in ("supervised", "unsupervised", "head", "medium", "tail", "aggregation")
        if name in line
    )
    parts = [f"step {line['step']}/{steps}", *losses]
    if "weight" in line:
        parts.append(f"λ {line['weight']:.2f}")
    if dice:
        parts.append(f"Dice {dice['mean']:.3f}")
    return "  ".join(parts)
