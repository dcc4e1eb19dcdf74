"""``dca train-clicks``: train the network that corrects results with clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from .console import print_line, progress_bar
from .option_values import MODEL_PANEL, RUN_PANEL, DeviceOption

NAME = "train-clicks"
EXAMPLES = "Example: dca train-clicks -o runs/clicks --phantoms 12 --minutes 30"

_RECORD = "run.json"
_DATA_PANEL = "Data"
_SCHEDULE_PANEL = "Schedule"


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: last.pt, log.jsonl and run.json.")],
    phantoms: Annotated[
        int, typer.Option(min=0, help="Number of phantoms to train on.", rich_help_panel=_DATA_PANEL)
    ] = 8,
    label_maps: Annotated[
        list[Path] | None,
        typer.Option(
            "--synthesize",
            help="Folder of a label map: also train on synthetic CTs made from it. Can be repeated.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    licenses: Annotated[
        list[str] | None,
        typer.Option(
            "--license",
            "--licence",
            help="License of the label map, once for each --synthesize.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    n_synthetic: Annotated[
        int,
        typer.Option(
            "--synthesize-ahead",
            "--synthesize-ahead",
            min=0,
            help="Number of synthetic CTs to make from the label maps.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = 16,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of prepared cases, which several runs can share. Default: OUT/cases.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    filters: Annotated[
        int, typer.Option(min=1, help="Channels of the network at full resolution.", rich_help_panel=MODEL_PANEL)
    ] = 12,
    side: Annotated[
        int,
        typer.Option(
            min=16, help="Side of the network's input cube in voxels, a multiple of 8.", rich_help_panel=MODEL_PANEL
        ),
    ] = 48,
    spacing: Annotated[
        float, typer.Option(min=0.5, max=6.0, help="Voxel spacing of the cube in mm.", rich_help_panel=MODEL_PANEL)
    ] = 2.0,
    steps: Annotated[
        int, typer.Option(min=1, help="Length of the whole run in steps.", rich_help_panel=_SCHEDULE_PANEL)
    ] = 20_000,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop after this time. --resume continues the run.", rich_help_panel=_SCHEDULE_PANEL
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Cubes per step.", rich_help_panel=_SCHEDULE_PANEL)] = 2,
    learning_rate: Annotated[
        float, typer.Option(min=1e-8, help="Peak learning rate.", rich_help_panel=_SCHEDULE_PANEL)
    ] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.", rich_help_panel=_SCHEDULE_PANEL)] = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in OUT with its own options.", rich_help_panel=RUN_PANEL),
    ] = False,
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
    import json

    from ..imaging.writers import write_json
    from ..inference.device import choose_device
    from ..interaction.click_network import ORIENTATION, ClickNetworkOptions, save_click_bundle
    from ..models.metadata import TrainingData
    from ..training.click_training import CHECKPOINT, ClickTrainer, ClickTrainingOptions
    from ..training.options import GridOptions
    from ..training.sources import LABELLED_SEEDS, VALIDATION_SEEDS, Phantoms
    from ..training.training_set import TrainingSet
    from .train import ahead_training_set

    torch_device = choose_device(device).torch_device
    if resume:
        try:
            record = json.loads((out / _RECORD).read_text(encoding="utf-8"))
            options = ClickTrainingOptions.from_json(record["options"])
            source = record["source"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{out} does not contain a run of train-clicks.", "To start one, omit --resume.") from None
    else:
        if (out / CHECKPOINT).exists():
            raise UserError(f"{out} already contains a run.", "Add --resume to continue it, or choose another folder.")
        try:
            network = ClickNetworkOptions(filters, side, spacing)
        except ValueError:
            raise UserError(f"--side cannot be {side}.", "Give a multiple of 8, at least 16.") from None
        options = ClickTrainingOptions(network, steps, batch, learning_rate, seed=seed)
        source = {
            "phantoms": phantoms,
            "maps": [str(path.resolve()) for path in label_maps or []],
            "licences": list(licenses or []),
            "painted": n_synthetic if label_maps else 0,
        }
    training_set = TrainingSet((Phantoms(LABELLED_SEEDS, source["phantoms"]),) if source["phantoms"] else ())
    if source["painted"]:
        maps = [Path(path) for path in source["maps"]]
        training_set = training_set.joined(ahead_training_set(maps, source["licences"], 0, source["painted"]))
    # Two phantoms for validation, which no training uses.
    training_set = training_set.joined(TrainingSet((), (), (Phantoms(VALIDATION_SEEDS, 2),)))
    grid = GridOptions(spacing=(options.network.spacing_mm,) * 3, orientation=ORIENTATION)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        labelled, _, validation = training_set.cases(cache or out / "cases", grid, progress)
        trainer = ClickTrainer(out, options, labelled, validation, str(torch_device))
        if resume:
            trainer.resume()
        else:
            write_json({"options": options.to_json(), "source": source}, out / _RECORD)
        lines: list[dict[str, Any]] = []

        def report(line: dict[str, Any]) -> None:
            lines.append(line)
            loss = f"loss {line['loss']:.3f}" if "loss" in line else f"Dice {line['dice_after']:.3f}"
            progress(line["step"] / options.steps, f"step {line['step']}/{options.steps}  {loss}")

        trainer.run(minutes=minutes, report=report)
    scores = {key: value for key, value in lines[-1].items() if key != "step"} if lines else {}
    if "dice_after" in scores:
        print_line(
            f"Validation: Dice {scores['dice_before']:.3f} before and {scores['dice_after']:.3f} after a click; "
            f"{scores['worse']:.0%} of the clicks lower it."
        )
    print_line(f"The run is in {out} at step {trainer.step} of {options.steps}.")
    if bundle is not None:
        sources: list[TrainingData] = [each for data in training_set.labelled for each in data.describe(True)]
        save_click_bundle(bundle, trainer.network, name, sources, trainer.step, scores)
        print_line(f"The bundle is in {bundle}.")
    if trainer.step < options.steps:
        print_line(f"To continue: dca train-clicks -o {out} --resume" + (f" --cache {cache}" if cache else ""))
