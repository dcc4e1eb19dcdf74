"""What a training step costs in time and memory, against the plain pass: run in a process of its own for each.

``python -m dcaseg.benchmark.step_cost WAY OPTIONS`` prints JSON; ``measure`` starts it.
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
from ..method.losses import unsupervised_weight
from ..training.options import TrainingOptions
from ..training.strategies.dca import dca_network
from ..training.strategies.dca_losses import Stage, plain_losses, supervised_losses, unsupervised_loss

WAYS = ("plain", "plain_kept", "joint", "experts", "aggregation", "labelled")
"""One graph of everything, in a process as a script of PyTorch has it; the same in one that keeps freed memory, as
``dca train`` does (on Linux, on the CPU); and in such processes: the same losses in two graphs, the two stages of the
default preset, and the second stage while the unsupervised loss is left out for its small weight.

``joint`` cannot save more arithmetic than the experts' backward pass over unlabelled patches, which ``plain`` makes for
nothing: of the multiply-accumulate operations at 16 filters 16 % (1388 of 1654 G at 96^3). What else it saves is
memory, and the time to get it from the system.
"""

# glibc's parameters of malloc as environment variables: no block of its own for a large tensor, nothing given back.
_KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
}

_ORGANS = 15
_MODULE = f"{__package__}.step_cost"


@dataclass(frozen=True)
class StepCost:
    """Seconds of the fastest step, which other work on the machine disturbs least, on the CPU seconds of all its
    threads' work (user and system), which other work hardly disturbs; peak memory of its tensors and graphs in MiB (on
    the CPU the growth of the process's peak above what it had before the first step); and the losses of the first
    step."""

    way: str
    seconds: float
    peak_mib: float
    losses: dict[str, float]


def measure(
    way: str, options: TrainingOptions, device: str = "cpu", steps: int = 3, threads: int | None = None
) -> StepCost:
    """Steps with random volumes and labels from one seed, the same for every way, in a process of its own."""
    told = json.dumps({"options": options.to_json(), "device": device, "steps": steps, "threads": threads})
    environment = os.environ | ({} if way == "plain" else _KEEP_FREED_MEMORY)
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, way, told], capture_output=True, text=True, check=False, env=environment
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
    """Every way once in each of ``rounds``, so that what slows the machine for a while slows them alike; the medians of
    seconds and memory, and the losses of the first round, by way."""
    found: dict[str, list[StepCost]] = {way: [] for way in WAYS}
    for index in range(rounds):
        for place, way in enumerate(WAYS):
            if progress is not None:
                progress((index + place / len(WAYS)) / rounds, f"Measuring {way}, round {index + 1} of {rounds}")
            found[way].append(measure(way, options, device, steps, threads))
    return {
        way: StepCost(way, median(one.seconds for one in costs), median(one.peak_mib for one in costs), costs[0].losses)
        for way, costs in found.items()
    }


def expected_step(costs: dict[str, StepCost], options: TrainingOptions) -> tuple[float, float]:
    """Mean seconds and peak MiB of a step of a whole run: its stages, and in the second one the steps with and without
    the unsupervised loss, by their shares."""
    if options.expert_stage_fraction == 0:
        (way,) = expected_ways(options)
        return costs[way].seconds, costs[way].peak_mib
    steps = 1000
    least = options.unsup_weight_cutoff * options.unsupervised_weight
    weights = [
        unsupervised_weight(step, round(options.ramp_fraction * steps), options.unsupervised_weight)
        for step in range(steps)
    ]
    taught = sum(weight > least for weight in weights) / steps
    second = taught * costs["aggregation"].seconds + (1 - taught) * costs["labelled"].seconds
    seconds = options.expert_stage_fraction * costs["experts"].seconds + (1 - options.expert_stage_fraction) * second
    return seconds, max(costs["experts"].peak_mib, costs["aggregation"].peak_mib)


def expected_ways(options: TrainingOptions) -> tuple[str, ...]:
    """The ways that a run with these options goes."""
    if options.expert_stage_fraction == 0:
        return ("plain_kept",) if options.joint_statistics else ("joint",)
    return "experts", "aggregation", "labelled"


def network_of(options: TrainingOptions, device: torch.device) -> torch.nn.Module:
    """The network in training, each of its parameters with a gradient; of DCA, whatever the options' strategy."""
    groups = partition({label: 4 ** (_ORGANS - label) for label in range(1, _ORGANS + 1)}, "average")
    network = dca_network(replace(options, strategy="dca"), groups).to(device).train()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return network


def one_step(network: torch.nn.Module, way: str, options: TrainingOptions, device: torch.device) -> dict[str, float]:
    """Forward and backward pass of ``way`` on random volumes and labels, the same each time; the losses."""
    generator = torch.Generator().manual_seed(1)
    size = (options.labelled_per_step, 1, *options.patch)
    volumes = torch.rand(size, generator=generator).to(device)
    unlabelled = torch.rand((options.unlabelled_per_step, 1, *options.patch), generator=generator).to(device)
    labels = torch.randint(0, _ORGANS + 1, (size[0], *options.patch), generator=generator).to(device)
    weight = options.unsupervised_weight
    if way in ("plain", "plain_kept"):
        losses, _ = plain_losses(network, volumes, labels, unlabelled, options)  # type: ignore[arg-type]
        supervised = [loss for name, loss in losses.items() if name != "unsupervised"]
        (torch.stack(supervised).sum() + weight * losses["unsupervised"]).backward()
        return {name: loss.item() for name, loss in losses.items()}
    stage: Stage = "aggregation" if way == "labelled" else way  # type: ignore[assignment]
    losses = supervised_losses(network, volumes, labels, options, stage)  # type: ignore[arg-type]
    if losses:
        torch.stack(list(losses.values())).sum().backward()
    found = {name: loss.item() for name, loss in losses.items()}
    if stage != "experts" and way != "labelled":
        del losses
        loss, _ = unsupervised_loss(network, unlabelled, options, stage)  # type: ignore[arg-type]
        (weight * loss).backward()
        found["unsupervised"] = loss.item()
    return found


def peak_mib(device: torch.device) -> float:
    """The most memory that this process, or its tensors on a GPU, has had, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss begins with the size of the process that started this one, which may be larger than this gets.
        high_water = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(high_water.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _main(way: str, told: str) -> None:
    given = json.loads(told)
    options = TrainingOptions.from_json(given["options"])
    device = torch.device(given["device"])
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    network = network_of(options, device)
    before = peak_mib(device) if device.type == "cpu" else 0.0
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: list[float] = []
    losses: dict[str, float] = {}
    for step in range(given["steps"]):
        started = clock()
        found = one_step(network, way, options, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
        losses = losses or found
        if step == 0 and given["steps"] > 1:
            # The first step also loads kernels and memory.
            seconds.clear()
    print(json.dumps(asdict(StepCost(way, min(seconds), peak_mib(device) - before, losses))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
