"""``dca train-clicks``: train the network that corrects with clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from .console import progress_bar, say
from .option_values import DeviceOption

NAME = "train-clicks"
EXAMPLES = "Example: dca train-clicks -o runs/clicks --phantoms 12 --minutes 30"

_RECORD = "run.json"


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: last.pt, log.jsonl, run.json.")],
    phantoms: Annotated[int, typer.Option(min=0, help="So many synthetic people to train on.")] = 8,
    synthesize: Annotated[
        list[Path] | None, typer.Option(help="A folder with a label map to paint CTs from. May be repeated.")
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(help="Licence of each label map, once for each --synthesize.")
    ] = None,
    painted: Annotated[int, typer.Option(min=0, help="So many painted CTs.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Length of the whole run in steps.")] = 20_000,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop after this time; --resume goes on.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Cubes in a step.")] = 2,
    filters: Annotated[int, typer.Option(min=1, help="Channels of the network at full resolution.")] = 12,
    side: Annotated[int, typer.Option(min=16, help="Voxels along a side of the cube, a multiple of 8.")] = 48,
    spacing: Annotated[float, typer.Option(min=0.5, max=6.0, help="Voxel size of the cube in mm.")] = 2.0,
    learning_rate: Annotated[float, typer.Option(min=1e-8, help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn at random.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of prepared cases, shared by runs. Else OUT/cases.")
    ] = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own options.")] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="At the end, make this bundle of the weights as they are.")
    ] = None,
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "dca-clicks",
) -> None:
    """Train the class-agnostic network of dca correct, on synthetic CTs with simulated errors and clicks.

    A run can be stopped at any time and resumed; it draws what it would have drawn. Use the network with
    **dca correct --engine BUNDLE**, measure it with **dca evaluate-clicks --engines BUNDLE**.
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
            raise UserError(f"{out} holds no run of train-clicks.", "Start one without --resume.") from None
    else:
        if (out / CHECKPOINT).exists():
            raise UserError(f"{out} holds a run already.", "Add --resume, or choose another folder.")
        try:
            network = ClickNetworkOptions(filters, side, spacing)
        except ValueError:
            raise UserError(f"A cube of {side} voxels is not possible.", "Give a multiple of 8, at least 16.") from None
        options = ClickTrainingOptions(network, steps, batch, learning_rate, seed=seed)
        source = {
            "phantoms": phantoms,
            "maps": [str(path.resolve()) for path in synthesize or []],
            "licences": list(licence or []),
            "painted": painted if synthesize else 0,
        }
    cohort = TrainingSet((Phantoms(LABELLED_SEEDS, source["phantoms"]),) if source["phantoms"] else ())
    if source["painted"]:
        maps = [Path(path) for path in source["maps"]]
        cohort = cohort.joined(ahead_training_set(maps, source["licences"], 0, source["painted"]))
    # Seen by no training: two people to validate on.
    cohort = cohort.joined(TrainingSet((), (), (Phantoms(VALIDATION_SEEDS, 2),)))
    grid = GridOptions(spacing=(options.network.spacing_mm,) * 3, orientation=ORIENTATION)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        labelled, _, validation = cohort.cases(cache or out / "cases", grid, progress)
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
        say(
            f"Validation: Dice {scores['dice_before']:.3f} before, {scores['dice_after']:.3f} after a click, "
            f"{scores['worse']:.0%} of clicks lower it."
        )
    say(f"The run is in {out}, at step {trainer.step} of {options.steps}.")
    if bundle is not None:
        sources: list[TrainingData] = [each for data in cohort.labelled for each in data.describe(True)]
        save_click_bundle(bundle, trainer.network, name, sources, trainer.step, scores)
        say(f"The bundle is in {bundle}.")
    if trainer.step < options.steps:
        say(f"Go on with: dca train-clicks -o {out} --resume" + (f" --cache {cache}" if cache else ""))
