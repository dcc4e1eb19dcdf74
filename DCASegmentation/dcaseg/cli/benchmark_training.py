"""``dca benchmark training``: what a training step costs, and whether it waits for its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import output, progress_bar, say, show, table
from .option_values import DeviceOption, new_file
from .option_values import patch as patch_of

NAME = "training"
EXAMPLES = "Example: dca benchmark training --threads 1 -o benchmark.json"


def run(
    preset: Annotated[
        Literal["default", "paper", "small"], typer.Option(help="Whose step to measure; small is dca experiment's.")
    ] = "default",
    filters: Annotated[int | None, typer.Option(min=1, help="Channels of the network at full resolution.")] = None,
    patch: Annotated[str | None, typer.Option(help="Patch in voxels, one side or depth,height,width.")] = None,
    norm: Annotated[
        Literal["instance", "batch"], typer.Option(help="With batch statistics the losses of the two differ.")
    ] = "instance",
    steps: Annotated[int, typer.Option(min=2, help="Steps of each; the first does not count.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured, in turn; medians are shown.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch on the CPU.")] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file with the figures.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Measure time and peak memory of a training step, with forward and backward pass on random volumes.

    Each way runs in a process of its own: everything in one graph (plain; plain_kept where the process keeps freed
    memory, as **dca train** does), the same losses in two graphs (joint), and the stages in which the default preset
    trains, the second also without the unsupervised loss (labelled). Their losses are compared with those of plain. On
    the CPU seconds are CPU seconds. Then a run on synthetic people says how long its steps wait for their patches, and
    our trainer and a plain MONAI loop train the same V-Net: samples a second, CPU time, memory, share in the network.

    The memory on a GPU is an estimate: tensors of steps with small patches, measured on the CPU in single precision,
    brought to the whole patch, and 1.5 GiB assumed for what CUDA takes beside them.
    """
    from dataclasses import asdict

    from ..benchmark.data_loading import measure_data_loading
    from ..benchmark.memory import BEYOND_TENSORS_GIB, estimate
    from ..benchmark.step_cost import expected_step, measure_in_turn
    from ..benchmark.training_loops import LOOPS, measure_loop
    from ..evaluation.experiments.definitions import small_options
    from ..imaging.writers import write_json
    from ..inference.device import choose_device
    from ..training.options import TrainingOptions

    if out is not None:
        new_file(out, overwrite)
    changes: dict[str, Any] = {"norm": norm}
    if filters is not None:
        changes["n_filters"] = filters
    if patch is not None:
        changes["patch"] = patch_of(patch, smallest=32)
    presets: dict[str, Callable[..., TrainingOptions]] = {
        "default": TrainingOptions,
        "paper": TrainingOptions.paper,
        "small": small_options,
    }
    options = presets[preset](**changes)
    torch_device = str(choose_device(device).torch_device)
    with progress_bar() as progress:
        costs = measure_in_turn(
            options, torch_device, rounds, steps, threads, lambda share, text: progress(0.8 * share, text)
        )
        progress(0.8, "Training on synthetic people")
        loading = measure_data_loading(options, torch_device, steps, threads)
        progress(0.9, "Training by our trainer and by MONAI's means")
        loops = [measure_loop(loop, options, torch_device, steps, threads) for loop in LOOPS]
        progress(0.97, "Following tensors")
        tensors_gib = estimate(options).gib_at(options.patch)
    plain = costs["plain"]
    whole = expected_step(costs, options)
    shown = table(
        f"A step of preset {preset} on {torch_device}: patch {'x'.join(map(str, options.patch))}, "
        f"{options.n_filters} filters, {options.labelled_per_step} + {options.unlabelled_per_step} patches",
        "Way", "Seconds", "of plain time", "Peak MiB", "of plain memory",
        numbers=("Seconds", "of plain time", "Peak MiB", "of plain memory"),
    )  # fmt: skip
    rows = [(way, cost.seconds, cost.peak_mib) for way, cost in costs.items()]
    for way, seconds, mib in [*rows, ("a run's mean step", *whole)]:
        shown.add_row(
            way, f"{seconds:.3f}", f"{seconds / plain.seconds:.2f}", f"{mib:.0f}", f"{mib / plain.peak_mib:.2f}"
        )
    show(shown)
    largest = max(abs(plain.losses[name] - value) for cost in costs.values() for name, value in cost.losses.items())
    say(f"Largest difference of a loss from that of plain: {largest:.1e}")
    say(f"A step waits for its data for {loading.share:.1%} of its time, over {loading.steps} steps.")
    loop_table = table(
        "The same V-Net, trained by", "Loop", "Samples/s", "CPU s/sample", "in the network", "Peak MiB",
        numbers=("Samples/s", "CPU s/sample", "in the network", "Peak MiB"),
    )  # fmt: skip
    for one in loops:
        loop_table.add_row(
            one.loop, f"{one.samples_per_second:.2f}", f"{one.cpu_seconds:.2f}", f"{one.network_share:.0%}",
            f"{one.peak_mib:.0f}",
        )  # fmt: skip
    output().print(loop_table)
    gpu_gib = tensors_gib + BEYOND_TENSORS_GIB
    say(
        f"On a GPU, estimated: {gpu_gib:.1f} GiB in single precision ({tensors_gib:.1f} GiB of tensors, and "
        f"{BEYOND_TENSORS_GIB:g} GiB assumed for CUDA's context and workspaces)."
    )
    if out is not None:
        told = {way: asdict(cost) for way, cost in costs.items()}
        measured = {
            "ways": told,
            "data_loading": asdict(loading),
            "loops": [asdict(one) for one in loops],
            "estimated_gpu_gib": gpu_gib,
        }
        write_json({"device": torch_device, "options": _finite(options.to_json()), **measured}, out)
        say(f"Written: {out}")


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {name: None if value == float("inf") else value for name, value in options.items()}
