"""How memory grows with the length of the scan, and an estimate of the GPU memory of a training step.

Run in a process of its own: python -m dcaseg.benchmark.memory OPTIONS

Every tensor that PyTorch makes during a step (forward and backward pass) is followed until it is let go. The largest
sum at small patches gives a line over the patch's voxels, and that line the figure for the patch that is asked for.
What a GPU takes beyond tensors, CUDA's context and the workspace of its convolutions, is an assumption.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..training.options import TrainingOptions
from .process_cost import ProcessFailedError, memory_free_mib
from .step_cost import expected_ways, network_of, one_step


@dataclass(frozen=True)
class Growth:
    """Peak memory of one pipeline in MiB by the number of slices; reasons for lengths that were left out."""

    peaks_mib: dict[int, float]
    left_out: dict[int, str]

    @property
    def mib_per_slice(self) -> float | None:
        """Slope of the line through the peaks (least squares); None for fewer than two."""
        line = self._line()
        return None if line is None else line[0]

    def expected_mib(self, slices: int) -> float | None:
        """What the line says of another length; None for fewer than two peaks."""
        line = self._line()
        return None if line is None else line[0] * slices + line[1]

    def _line(self) -> tuple[float, float] | None:
        if len(self.peaks_mib) < 2:
            return None
        slope, start = np.polyfit(list(self.peaks_mib), list(self.peaks_mib.values()), 1)
        return float(slope), float(start)


def measure_growth(
    peak_mib: Callable[[int], float], lengths: Sequence[int], free_mib: Callable[[], float] = memory_free_mib
) -> Growth:
    """Peaks at ``lengths`` (slices), the shortest first; ``peak_mib(slices)`` runs the pipeline.

    From the third on, a length is left out if by the line through the others it takes more memory than is free: it
    would be ended by the system, and other programs with it.
    """
    growth = Growth({}, {})
    for slices in sorted(lengths):
        expected = growth.expected_mib(slices)
        if expected is not None and expected > free_mib():
            growth.left_out[slices] = f"some {expected / 1024:.0f} GiB expected, {free_mib() / 1024:.0f} GiB free"
            continue
        growth.peaks_mib[slices] = peak_mib(slices)
    return growth


SMALL_PATCHES = (32, 48)
BEYOND_TENSORS_GIB = 1.5
"""CUDA's context (about half a GiB) and the workspace of cuDNN's convolutions. Assumed, not measured."""
_GIB = 2**30


@dataclass(frozen=True)
class TensorBytes:
    """Largest sum of tensors during a step at small patches, by the patch's side in voxels; and what is there between
    steps: weights, gradients, the optimizer's and the average's."""

    peaks: dict[int, int]
    steady: int

    def gib_at(self, patch: tuple[int, int, int]) -> float:
        """Tensors of a step with ``patch``, by the line through the small ones, in GiB."""
        (small, low), (large, high) = sorted(self.peaks.items())
        slope = (high - low) / (large**3 - small**3)
        return (self.steady + high + slope * (math.prod(patch) - large**3)) / _GIB


def estimate(options: TrainingOptions) -> TensorBytes:
    """Measure the small steps of ``options`` in single precision. Raises ProcessFailedError."""
    command = [sys.executable, "-m", f"{__package__}.gpu_memory", json.dumps(options.to_json())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFailedError(" ".join(done.stderr.strip().splitlines()[-3:]))
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return TensorBytes({int(side): peak for side, peak in told["peaks"].items()}, told["steady"])


class LivingTensors(TorchDispatchMode):
    """Follows the memory of every tensor made while it is on; ``peak`` is the largest sum in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and _storage(each) not in inputs:
                self._follow(each)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        key, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if key in self._known or not size:
            return
        self._known[key] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(tensor.untyped_storage(), self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.held -= self._known.pop(key, 0)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _main(told: str) -> None:
    options = TrainingOptions.from_json(json.loads(told))
    device = torch.device("cpu")
    peaks, steady = {}, 0
    for side in SMALL_PATCHES:
        network = network_of(options, device)
        weights = sum(parameter.nbytes for parameter in network.parameters())
        # Weights, gradients, one or two moments, and the average.
        copies = 2 + (2 if options.optimizer == "adamw" else 1) + (1 if options.ema_decay else 0)
        steady = copies * weights
        small = replace(options, patch=(side, side, side))
        largest = 0
        for way in expected_ways(options):
            with LivingTensors() as living:
                one_step(network, way, small, device)
            largest = max(largest, living.peak)
        peaks[side] = largest
    print(json.dumps(asdict(TensorBytes(peaks, steady))))


if __name__ == "__main__":
    _main(sys.argv[1])
