"""Measures time and memory of a training step in several variants, each in a separate process.

``python -m dcaseg.benchmark.step_cost VARIANT OPTIONS`` prints JSON; ``measure`` starts it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from ..method.log_gap import partition
from ..method.losses import compute_sigmoid_rampup
from ..training.options import TrainingOptions
from ..training.strategies.dca import build_dca_network
from ..training.strategies.dca_losses import Stage, compute_joint_losses, compute_supervised_losses, unsupervised_loss

VARIANTS = ("plain", "plain_kept", "joint", "experts", "aggregation", "labelled")
"""The variants of a step.

- ``plain``: one graph for all losses, in an ordinary PyTorch process.
- ``plain_kept``: the same in a process that keeps freed memory, like ``dca train`` (on Linux, on the CPU). The
  following variants run in such a process, too.
- ``joint``: the same losses in two graphs.
- ``experts`` and ``aggregation``: the two stages of the default preset.
- ``labelled``: the second stage while the unsupervised loss is omitted because of its small weight.

The only arithmetic that ``joint`` saves is the experts' backward pass over unlabeled patches, which ``plain`` computes
needlessly: 16 % of the multiply-accumulates with 16 filters (1388 of 1654 G at 96^3). It also saves memory, and the
time to get it from the system. With the option ``pseudo_label_source`` "decoder", it has one more pass over unlabeled
patches, that of the strong view.
"""

# Parameters of glibc's malloc as environment variables: no separate mapping for large tensors, no memory returned.
_KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
}

_ORGANS = 15
_MODULE = f"{__package__}.step_cost"


@dataclass(frozen=True)
class StepCost:
    """The cost of a step.

    ``seconds`` is the time of the fastest step, which other load on the machine affects least; on the CPU it is the CPU
    time of all threads (user and system). ``peak_mib`` is the peak memory of tensors and graphs in MiB; on the CPU it
    is the growth of the process's peak after the first step started. ``losses`` are those of the first step.
    """

    variant: str
    seconds: float
    peak_mib: float
    losses: dict[str, float]


def measure(
    variant: str, options: TrainingOptions, device: str = "cpu", steps: int = 3, threads: int | None = None
) -> StepCost:
    """Measure steps on random volumes and labels, the same for every variant, in a separate process.

    Raises RuntimeError if the process fails.
    """
    args = json.dumps({"options": options.to_json(), "device": device, "steps": steps, "threads": threads})
    environment = os.environ | ({} if variant == "plain" else _KEEP_FREED_MEMORY)
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, variant, args], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1000:])
    return StepCost(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure_in_turn(
    options: TrainingOptions,
    device: str = "cpu",
    rounds: int = 3,
    steps: int = 3,
    threads: int | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, StepCost]:
    """Measure every variant once per round, so that temporary load on the machine affects all of them equally.

    Returns the medians of time and memory and the losses of the first round, by variant.
    """
    measured: dict[str, list[StepCost]] = {variant: [] for variant in VARIANTS}
    for index in range(rounds):
        for position, variant in enumerate(VARIANTS):
            if progress is not None:
                progress(
                    (index + position / len(VARIANTS)) / rounds, f"Measuring {variant}, round {index + 1} of {rounds}"
                )
            measured[variant].append(measure(variant, options, device, steps, threads))
    return {
        variant: StepCost(variant, median(c.seconds for c in costs), median(c.peak_mib for c in costs), costs[0].losses)
        for variant, costs in measured.items()
    }


def estimate_step_cost(costs: dict[str, StepCost], options: TrainingOptions) -> tuple[float, float]:
    """Mean seconds and peak MiB of the steps of a whole run.

    Weights the costs by the fractions of the stages and, in the second stage, of steps with and without the
    unsupervised loss.
    """
    if options.expert_stage_fraction == 0:
        (variant,) = select_variants(options)
        return costs[variant].seconds, costs[variant].peak_mib
    steps = 1000
    cutoff = options.unsup_weight_cutoff * options.unsupervised_weight
    weights = [
        compute_sigmoid_rampup(step, round(options.ramp_fraction * steps), options.unsupervised_weight)
        for step in range(steps)
    ]
    fraction = sum(weight > cutoff for weight in weights) / steps
    second = fraction * costs["aggregation"].seconds + (1 - fraction) * costs["labelled"].seconds
    seconds = options.expert_stage_fraction * costs["experts"].seconds + (1 - options.expert_stage_fraction) * second
    return seconds, max(costs["experts"].peak_mib, costs["aggregation"].peak_mib)


def select_variants(options: TrainingOptions) -> tuple[str, ...]:
    """The variants that occur in a run with these options."""
    if options.expert_stage_fraction == 0:
        return ("plain_kept",) if options.joint_statistics else ("joint",)
    return "experts", "aggregation", "labelled"


def create_network(options: TrainingOptions, device: torch.device) -> torch.nn.Module:
    """DCA's network in training mode (for any strategy in ``options``), with a gradient for each parameter."""
    groups = partition({label: 4 ** (_ORGANS - label) for label in range(1, _ORGANS + 1)}, "average")
    network = build_dca_network(replace(options, strategy="dca"), groups).to(device).train()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return network


def run_step(
    network: torch.nn.Module, variant: str, options: TrainingOptions, device: torch.device
) -> dict[str, float]:
    """Forward and backward pass of ``variant`` on the same random volumes and labels each time; returns the losses."""
    generator = torch.Generator().manual_seed(1)
    size = (options.labeled_per_step, 1, *options.patch)
    volumes = torch.rand(size, generator=generator).to(device)
    unlabeled = torch.rand((options.unlabeled_per_step, 1, *options.patch), generator=generator).to(device)
    labels = torch.randint(0, _ORGANS + 1, (size[0], *options.patch), generator=generator).to(device)
    weight = options.unsupervised_weight
    if variant in ("plain", "plain_kept"):
        losses, _ = compute_joint_losses(network, volumes, labels, unlabeled, options)  # type: ignore[arg-type]
        supervised = [loss for name, loss in losses.items() if name != "unsupervised"]
        (torch.stack(supervised).sum() + weight * losses["unsupervised"]).backward()
        return {name: loss.item() for name, loss in losses.items()}
    stage: Stage = "aggregation" if variant == "labelled" else variant  # type: ignore[assignment]
    losses = compute_supervised_losses(network, volumes, labels, options, stage)  # type: ignore[arg-type]
    if losses:
        torch.stack(list(losses.values())).sum().backward()
    found = {name: loss.item() for name, loss in losses.items()}
    if stage != "experts" and variant != "labelled":
        del losses
        # A decoder that learns its own pseudo-labels needs a pass over a strong view. Here the patch itself takes its
        # place, so that the losses are those of the plain step.
        view = unlabeled if options.pseudo_label_source == "decoder" else None
        loss, _ = unsupervised_loss(network, unlabeled, options, stage, view)  # type: ignore[arg-type]
        (weight * loss).backward()
        found["unsupervised"] = loss.item()
    return found


def get_peak_mib(device: torch.device) -> float:
    """Peak memory in MiB of this process, or of its tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: it starts from the peak of the parent process, which may be larger.
        high_water = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(high_water.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _main(variant: str, json_args: str) -> None:
    args = json.loads(json_args)
    options = TrainingOptions.from_json(args["options"])
    device = torch.device(args["device"])
    if args["threads"]:
        torch.set_num_threads(args["threads"])
    torch.manual_seed(0)
    network = create_network(options, device)
    before = get_peak_mib(device) if device.type == "cpu" else 0.0
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: list[float] = []
    losses: dict[str, float] = {}
    for step in range(args["steps"]):
        started = clock()
        step_losses = run_step(network, variant, options, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
        losses = losses or step_losses
        if step == 0 and args["steps"] > 1:
            # The first step is excluded, since it also loads kernels and allocates memory.
            seconds.clear()
    print(json.dumps(asdict(StepCost(variant, min(seconds), get_peak_mib(device) - before, losses))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
