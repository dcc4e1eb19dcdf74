"""``dca train-clicks``: train the network that corrects results with clicks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OutputError, UserError
from ..interaction.click_options import ClickNetworkOptions
from ..json_io import dump, load, read_json
from ..option_fields import make_option_metadata
from ..training.options import ClickTrainingOptions
from .console import cancellation_message, print_line, progress_bar, warn
from .field_options import Values, expand, fields_of
from .options import (
    DATA_PANEL,
    MODEL_PANEL,
    RUN_PANEL,
    SCHEDULE_PANEL,
    SYNTHESIS_PANEL,
    CacheOption,
    DeviceOption,
    LabelMapGroup,
    MinutesOption,
    ResumeOption,
    require_unchanged_options,
)

NAME = "train-clicks"
EXAMPLES = "Example: dca train-clicks -o runs/clicks --phantoms 12 --minutes 30"

_RECORD = "run.json"
_DEFAULTS = ClickTrainingOptions()
# The options that a resumed run may have: its length, how it is computed, and what is written at the end.
_RESUMABLE = {"out", "cache", "steps", "minutes", "resume", "device", "bundle", "name"}
_STEPS_HELP = f"Length of the whole run in steps; with --resume, its new length. Default: {_DEFAULTS.steps}."


@dataclass(frozen=True)
class _Source:
    """The cases of a run: the number of phantoms, and of synthetic CTs made from label maps."""

    phantoms: int
    maps: tuple[str, ...]
    licences: tuple[str, ...]
    synthesized: int = field(metadata=make_option_metadata(key="painted"))


@dataclass(frozen=True)
class _Record:
    """The content of ``run.json``."""

    options: ClickTrainingOptions
    source: _Source


@expand
def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: last.pt, log.jsonl and run.json.")],
    *,
    phantoms: Annotated[
        int, typer.Option(min=0, help="Number of phantoms to train on.", rich_help_panel=DATA_PANEL)
    ] = 8,
    maps: LabelMapGroup,
    n_synthetic: Annotated[
        int,
        typer.Option(
            "--synthesize-ahead",
            min=0,
            help="Number of synthetic CTs to make from the label maps.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = 16,
    cache: CacheOption = None,
    network: Annotated[
        Values,
        fields_of(
            ClickNetworkOptions, "n_filters", "side", "spacing_mm", base=ClickNetworkOptions(), panel=MODEL_PANEL
        ),
    ],
    length: Annotated[
        Values, fields_of(ClickTrainingOptions, "steps", panel=SCHEDULE_PANEL, help={"steps": _STEPS_HELP})
    ],
    minutes: MinutesOption = None,
    learning: Annotated[
        Values,
        fields_of(ClickTrainingOptions, "batch", "learning_rate", "seed", base=_DEFAULTS, panel=SCHEDULE_PANEL),
    ],
    resume: ResumeOption = False,
    device: DeviceOption = "auto",
    bundle: Annotated[
        Path | None,
        typer.Option(help="At the end, save the current weights as this bundle.", rich_help_panel=RUN_PANEL),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the bundle.", rich_help_panel=RUN_PANEL)] = "dca-clicks",
) -> None:
    """Train a network for **dca correct**.

    It learns to correct any organ, from synthetic CTs with simulated errors and clicks. You can stop a run at any time
    and resume it with the same result. Use the network with **dca correct --engine BUNDLE**, and measure it with **dca
    evaluate-clicks --engines BUNDLE**.
    """
    from ..file_lock import locked_folder
    from ..imaging.writers import write_json
    from ..inference.device import choose_device
    from ..interaction.click_network import ORIENTATION, save_click_bundle
    from ..models.metadata import TrainingData
    from ..training.click_training import ClickTrainer
    from ..training.options import GridOptions
    from ..training.run_folder import CHECKPOINT, LOCK
    from ..training.sources import LABELED_SEEDS, VALIDATION_SEEDS, Phantoms
    from ..training.training_set import TrainingSet
    from .train_data import build_synthetic_training_set

    torch_device = choose_device(device).torch_device
    if bundle is not None and bundle.exists():
        raise OutputError(f"The folder {bundle} already exists.", "Choose another name for --bundle.")
    if resume:
        require_unchanged_options(context, _RESUMABLE)
        try:
            record = load(_Record, read_json(out / _RECORD))
        except (OSError, ValueError):
            raise UserError(f"{out} does not contain a run of train-clicks.", "To start one, omit --resume.") from None
        record = replace(record, options=replace(record.options, **length))
    else:
        if (out / CHECKPOINT).exists():
            raise UserError(f"{out} already contains a run.", "Add --resume to continue it, or choose another folder.")
        try:
            sized = ClickNetworkOptions(**network)
        except ValueError:
            raise UserError(f"--side cannot be {network['side']}.", "Specify a multiple of 8, at least 16.") from None
        folders = tuple(str(path.resolve()) for path in maps.label_maps or [])
        source = _Source(phantoms, folders, tuple(maps.licenses or ()), n_synthetic if folders else 0)
        record = _Record(ClickTrainingOptions(sized, **length, **learning), source)
    options, source = record.options, record.source
    training_set = TrainingSet((Phantoms(LABELED_SEEDS, source.phantoms),) if source.phantoms else ())
    if source.synthesized:
        made_from = LabelMapGroup([Path(path) for path in source.maps], list(source.licences))
        training_set = training_set.merge(build_synthetic_training_set(made_from, 0, source.synthesized))
    # Two phantoms for validation, which no training uses.
    training_set = training_set.merge(TrainingSet((), (), (Phantoms(VALIDATION_SEEDS, 2),)))
    grid = GridOptions(spacing=(options.network.spacing_mm,) * 3, orientation=ORIENTATION)
    resume_command = f"dca train-clicks -o {out} --resume" + (f" --cache {cache}" if cache else "")
    with locked_folder(out, LOCK), progress_bar() as progress:
        labeled, _, validation = training_set.cases(cache or out / "cases", grid, progress)
        trainer = ClickTrainer(out, options, labeled, validation, str(torch_device))
        if resume:
            trainer.resume()
        write_json(dump(record), out / _RECORD)
        lines: list[dict[str, Any]] = []

        def report(line: dict[str, Any]) -> None:
            lines.append(line)
            loss = f"loss {line['loss']:.3f}" if "loss" in line else f"Dice {line['dice_after']:.3f}"
            progress(line["step"] / options.steps, f"step {line['step']}/{options.steps}  {loss}")

        with cancellation_message(
            lambda: f"The run is saved in {out} at step {trainer.step}. To continue: {resume_command}"
        ):
            trainer.run(minutes=minutes, report=report, notify=warn)
    scores = {key: value for key, value in lines[-1].items() if key != "step"} if lines else {}
    if "dice_after" in scores:
        print_line(
            f"Validation: Dice {scores['dice_before']:.3f} before and {scores['dice_after']:.3f} after a click; "
            f"{scores['worse']:.0%} of the clicks lower it."
        )
    print_line(f"The run is in {out} at step {trainer.step} of {options.steps}.")
    if bundle is not None:
        sources: list[TrainingData] = [each for data in training_set.labeled for each in data.describe(True)]
        save_click_bundle(bundle, trainer.network, name, sources, trainer.step, scores)
        print_line(f"The bundle is in {bundle}.")
    if trainer.step < options.steps:
        print_line(f"To continue: {resume_command}")
