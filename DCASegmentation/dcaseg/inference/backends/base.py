"""The interface of a backend: one way to run the network on windows."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ...method import streaming
from ...method.network import DCANet
from ...method.streaming import RequestedOutputs, StreamedOutput
from ..device import Device


def get_processor_name() -> str:
    """Return the name of the processor, such as "AMD EPYC"; empty if the system does not report it."""
    # On many Linux systems platform.processor() is empty.
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class Backend(Protocol):
    """Runs the network on a batch of windows."""

    @property
    def name(self) -> str:
        """The name of the backend, as in the option ``--backend``."""

    @property
    def needs_network(self) -> bool:
        """Whether the backend runs the task's own network, which must then keep its weights."""

    @property
    def windows_at_once(self) -> int:
        """The preferred number of windows in a batch."""

    def __call__(self, windows: Tensor) -> StreamedOutput:
        """Run the network on ``windows`` (batch, 1, depth, height, width), float32 on the backend's device.

        The next call may overwrite the result; do not write into it. Raises RuntimeError or MemoryError if memory runs
        out.
        """

    def release_memory(self) -> None:
        """Free memory that the next window would allocate again."""


@dataclass(frozen=True)
class Task:
    """What a backend runs.

    ``network`` is on the device, in evaluation mode. ``wanted`` are the requested outputs. ``patch`` is
    (depth, height, width). ``weights_sha256`` identifies the weights in caches; None disables caching.
    """

    network: DCANet
    wanted: RequestedOutputs
    patch: tuple[int, int, int]
    device: Device
    weights_sha256: str | None = None


class WindowNetwork(nn.Module):
    """The network as a module from one tensor to a tuple of tensors, the form that compilers and converters accept."""

    def __init__(self, network: DCANet, wanted: RequestedOutputs) -> None:
        super().__init__()
        self.network = network
        self.wanted = wanted

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        """Return the wanted outputs for ``windows`` (batch, 1, depth, height, width), in the order of ``as_tuple``."""
        return as_tuple(streaming.forward(self.network, windows, self.wanted))


def as_tuple(output: StreamedOutput) -> tuple[Tensor, ...]:
    """Return the tensors of an output in a fixed order: aggregated, stitched, attention by level.

    All are (batch, channel, depth, height, width); those not wanted are left out.
    """
    logits = [values for values in (output.aggregated, output.stitched) if values is not None]
    return *logits, *(output.attention[level] for level in sorted(output.attention))


def from_tuple(values: tuple[Tensor, ...], wanted: RequestedOutputs) -> StreamedOutput:
    """Return the output that ``as_tuple`` converted to ``values``; the inverse of ``as_tuple``."""
    remaining = list(values)
    aggregated = remaining.pop(0) if wanted.aggregated else None
    stitched = remaining.pop(0) if wanted.stitched else None
    return StreamedOutput(aggregated, stitched, dict(zip(sorted(wanted.attention_levels), remaining, strict=True)))


def run_one_by_one(
    windows: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]], wanted: RequestedOutputs
) -> StreamedOutput:
    """Call ``run`` with each window of ``windows`` (batch, 1, depth, height, width) and concatenate the outputs.

    A compiled network accepts a single shape: a batch of 1.
    """
    if len(windows) == 1:
        return from_tuple(run(windows), wanted)
    outputs = [run(window[None]) for window in windows]
    return from_tuple(tuple(torch.cat(values) for values in zip(*outputs, strict=True)), wanted)
