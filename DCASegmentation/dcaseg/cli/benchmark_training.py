"""``dca benchmark training``: the cost of a training step, and whether it waits for data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..training.options import TrainingOptions
from .console import make_table, print_line, print_table, progress_bar, warn
from .field_options import Values, expand, fields_of
from .option_values import parse_patch, require_new_file
from .options import DeviceOption, overwrite_option

NAME = "training"
EXAMPLES = "Example: dca benchmark training --threads 1 -o benchmark.json"


@expand
def run(
    preset: Annotated[
        Literal["default", "paper", "small"],
        typer.Option(help="Options of the training step. small is the preset of dca experiment."),
    ] = "default",
    *,
    size: Annotated[Values, fields_of(TrainingOptions, "n_filters")],
    patch: Annotated[str | None, typer.Option(help="Patch size in voxels: one side, or depth,height,width.")] = None,
    norm: Annotated[
        Literal["instance", "batch"],
        typer.Option(help="Normalization. With batch, the losses of plain and joint differ."),
    ] = "instance",
    steps: Annotated[int, typer.Option(min=2, help="Steps per variant. The first is not counted.")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, help="Measurements of each variant and loop, interleaved. The median is reported.")
    ] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch on the CPU.")] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file to write, with all measurements.")] = None,
    overwrite: Annotated[bool, overwrite_option("an existing file")] = False,
) -> None:
    """Measure the time and memory of a training step, and whether it waits for data.

    A step is a forward and a backward pass on random volumes. Each variant runs in its own process: everything in one
    graph (plain; plain_kept if the process keeps freed memory, like **dca train**), the same losses in two graphs
    (joint), and the stages of the default preset, the second of them also without the unsupervised loss (labelled).
    Their losses are compared with those of plain. On the CPU, times are CPU seconds.

    A run on phantoms then measures how long steps wait for patches. Finally, our trainer (also in single precision, and
    with the network compiled), a simple MONAI loop and nnU-Net's trainer (if **nnunetv2** is installed) train the same
    V-Net, and samples per second, CPU time, memory and the fraction of time in the network are compared.

    GPU memory is an estimate: the tensors of steps with small patches are measured on the CPU in single precision and
    scaled to the full patch, plus 1.5 GiB for CUDA itself.
    """
    from dataclasses import asdict

    from ..benchmark.data_loading import measure_data_loading
    from ..benchmark.memory import BEYOND_TENSORS_GIB, estimate
    from ..benchmark.step_cost import estimate_step_cost, measure_in_turn
    from ..benchmark.training_loops import measure_loops
    from ..evaluation.experiments.definitions import make_small_options
    from ..imaging.writers import write_json
    from ..inference.device import choose_device

    if out is not None:
        require_new_file(out, overwrite)
    changes: dict[str, Any] = {"norm": norm, **size}
    if patch is not None:
        changes["patch"] = parse_patch(patch, smallest=32)
    presets: dict[str, Callable[..., TrainingOptions]] = {
        "default": TrainingOptions,
        "paper": TrainingOptions.make_paper_preset,
        "small": make_small_options,
    }
    options = presets[preset](**changes)
    torch_device = str(choose_device(device).torch_device)
    with progress_bar() as progress:
        costs = measure_in_turn(
            options, torch_device, rounds, steps, threads, lambda share, text: progress(0.8 * share, text)
        )
        progress(0.8, "Training on phantoms")
        loading = measure_data_loading(options, torch_device, steps, threads)
        progress(0.9, "Training with our trainer and with others")
        loops = measure_loops(options, torch_device, steps, threads, rounds, warn)
        progress(0.97, "Measuring tensors")
        tensors_gib = estimate(options).estimate_gib(options.patch)
    plain = costs["plain"]
    whole = estimate_step_cost(costs, options)
    rows = make_table(
        f"A step of preset {preset} on {torch_device}: patch {'x'.join(map(str, options.patch))}, "
        f"{options.n_filters} filters, {options.labeled_per_step} + {options.unlabeled_per_step} patches",
        "Variant", "Seconds", "Relative time", "Peak MiB", "Relative memory",
        numbers=("Seconds", "Relative time", "Peak MiB", "Relative memory"),
    )  # fmt: skip
    measured_steps = [(variant, cost.seconds, cost.peak_mib) for variant, cost in costs.items()]
    for variant, seconds, mib in [*measured_steps, ("mean step of a run", *whole)]:
        rows.add_row(
            variant, f"{seconds:.3f}", f"{seconds / plain.seconds:.2f}", f"{mib:.0f}", f"{mib / plain.peak_mib:.2f}"
        )
    print_table(rows)
    largest = max(abs(plain.losses[name] - value) for cost in costs.values() for name, value in cost.losses.items())
    print_line(f"Largest difference between a loss and that of plain: {largest:.1e}")
    print_line(f"Steps wait for data {loading.share:.1%} of the time (mean of {loading.steps} steps).")
    loop_table = make_table(
        "Training loops, same V-Net", "Loop", "Samples/s", "CPU s/sample", "In the network", "Peak MiB",
        numbers=("Samples/s", "CPU s/sample", "In the network", "Peak MiB"),
    )  # fmt: skip
    for loop in loops:
        loop_table.add_row(
            loop.loop, f"{loop.samples_per_second:.2f}", f"{loop.cpu_seconds:.2f}", f"{loop.network_share:.0%}",
            f"{loop.peak_mib:.0f}",
        )  # fmt: skip
    print_table(loop_table)
    gpu_gib = tensors_gib + BEYOND_TENSORS_GIB
    print_line(
        f"Estimated GPU memory: {gpu_gib:.1f} GiB in single precision ({tensors_gib:.1f} GiB of tensors, and "
        f"{BEYOND_TENSORS_GIB:g} GiB assumed for the CUDA context and workspaces)."
    )
    if out is not None:
        measured = {
            "variants": {variant: asdict(cost) for variant, cost in costs.items()},
            "data_loading": asdict(loading),
            "loops": [asdict(loop) for loop in loops],
            "estimated_gpu_gib": gpu_gib,
        }
        write_json({"device": torch_device, "options": options.to_json(), **measured}, out)
        print_line(f"Written: {out}")
