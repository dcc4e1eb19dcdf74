"""What a backend is: one way of running the network on windows."""

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


def processor() -> str:
    """Such as "AMD EPYC"; empty where the system does not say."""
    # platform.processor() is empty on many Linux systems.
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class Backend(Protocol):
    """Runs the network on a batch of windows."""

    @property
    def name(self) -> str:
        """Its name, as in ``--runtime``."""

    @property
    def needs_network(self) -> bool:
        """Whether it runs the task's own network, which has to keep its weights then."""

    @property
    def windows_at_once(self) -> int:
        """How many windows it is best given at once."""

    def __call__(self, windows: Tensor) -> StreamedOutput:
        """The answer for windows (batch, 1, depth, height, width), float32 on the runtime's device.

        It may be overwritten at the next call, and is not to be written into. Raises RuntimeError or MemoryError where
        memory does not suffice.
        """

    def rest(self) -> None:
        """Let go of memory that the next window would take again."""


@dataclass(frozen=True)
class Task:
    """What a runtime is made for.

    ``network`` lies on the device, in evaluation mode. ``patch`` is (depth, height, width). ``weights_sha256`` names
    the weights where something made of them may be kept from run to run, None where nothing may.
    """

    network: DCANet
    wanted: RequestedOutputs
    patch: tuple[int, int, int]
    device: Device
    weights_sha256: str | None = None


class WindowNetwork(nn.Module):
    """The network as a module of one tensor in and a tuple of tensors out, which compilers and converters take."""

    def __init__(self, network: DCANet, wanted: RequestedOutputs) -> None:
        super().__init__()
        self.network = network
        self.wanted = wanted

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(streaming.forward(self.network, windows, self.wanted))


def as_tuple(whole: StreamedOutput) -> tuple[Tensor, ...]:
    """The tensors of an answer in a fixed order: aggregated, stitched, attention by level."""
    logits = [values for values in (whole.aggregated, whole.stitched) if values is not None]
    return *logits, *(whole.attention[level] for level in sorted(whole.attention))


def from_tuple(values: tuple[Tensor, ...], wanted: RequestedOutputs) -> StreamedOutput:
    """The answer that ``as_tuple`` has taken apart."""
    left = list(values)
    aggregated = left.pop(0) if wanted.aggregated else None
    stitched = left.pop(0) if wanted.stitched else None
    return StreamedOutput(aggregated, stitched, dict(zip(sorted(wanted.attention_levels), left, strict=True)))


def one_by_one(
    windows: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]], wanted: RequestedOutputs
) -> StreamedOutput:
    """The answers of ``run`` to single windows, put together: what is compiled is compiled for one shape."""
    if len(windows) == 1:
        return from_tuple(run(windows), wanted)
    answers = [run(window[None]) for window in windows]
    return from_tuple(tuple(torch.cat(values) for values in zip(*answers, strict=True)), wanted)
