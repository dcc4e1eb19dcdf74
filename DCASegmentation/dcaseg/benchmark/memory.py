"""Measures the growth of memory with the length of a scan, and estimates the GPU memory of a training step.

The estimate runs in a separate process: python -m dcaseg.benchmark.memory OPTIONS

It tracks every tensor that PyTorch creates in a step (forward and backward pass) until it is freed. A line through the
peaks at small patches, by number of voxels, gives the estimate for the requested patch. The memory that a GPU needs
beyond tensors (CUDA context, workspace of convolutions) is assumed.
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
from .process_cost import ProcessFailedError, get_free_memory_mib
from .step_cost import create_network, run_step, select_variants


@dataclass(frozen=True)
class Growth:
    """Peak memory (MiB) of a pipeline by number of slices, and the reasons for skipped lengths."""

    peaks_mib: dict[int, float]
    left_out: dict[int, str]

    @property
    def mib_per_slice(self) -> float | None:
        """Slope of a least-squares line through the peaks; None for fewer than two."""
        line = self._fit_line()
        return None if line is None else line[0]

    def estimate_peak_mib(self, slices: int) -> float | None:
        """Expected peak (MiB) at another length; None for fewer than two peaks."""
        line = self._fit_line()
        return None if line is None else line[0] * slices + line[1]

    def _fit_line(self) -> tuple[float, float] | None:
        if len(self.peaks_mib) < 2:
            return None
        slope, start = np.polyfit(list(self.peaks_mib), list(self.peaks_mib.values()), 1)
        return float(slope), float(start)


def measure_growth(
    peak_mib: Callable[[int], float], lengths: Sequence[int], free_mib: Callable[[], float] = get_free_memory_mib
) -> Growth:
    """Measure the peaks at ``lengths`` (slices), the shortest first; ``peak_mib(slices)`` runs the pipeline.

    From the third length on, a length is skipped if it is expected to need more memory than is free, since the system
    would kill it, and possibly other programs.
    """
    growth = Growth({}, {})
    for slices in sorted(lengths):
        expected = growth.estimate_peak_mib(slices)
        if expected is not None and expected > free_mib():
            free = free_mib() / 1024
            growth.left_out[slices] = f"needs about {expected / 1024:.0f} GiB, but only {free:.0f} GiB are free"
            continue
        growth.peaks_mib[slices] = peak_mib(slices)
    return growth


SMALL_PATCHES = (32, 48)
BEYOND_TENSORS_GIB = 1.5
"""GPU memory for the CUDA context (about half a GiB) and cuDNN's workspace. Assumed, not measured."""
_GIB = 2**30


@dataclass(frozen=True)
class TensorBytes:
    """Memory of tensors in bytes.

    ``peaks`` maps the side of a small cubic patch (voxels) to the peak during a step. ``steady`` is the memory between
    steps: weights, gradients, optimizer state and EMA weights.
    """

    peaks: dict[int, int]
    steady: int

    def estimate_gib(self, patch: tuple[int, int, int]) -> float:
        """Expected memory (GiB) of the tensors of a step with ``patch``, extrapolated from the small patches."""
        (small, low), (large, high) = sorted(self.peaks.items())
        slope = (high - low) / (large**3 - small**3)
        return (self.steady + high + slope * (math.prod(patch) - large**3)) / _GIB


def estimate(options: TrainingOptions) -> TensorBytes:
    """Measure steps with small patches in single precision, in a separate process.

    Raises ProcessFailedError if it fails.
    """
    command = [sys.executable, "-m", f"{__package__}.memory", json.dumps(options.to_json())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFailedError(" ".join(done.stderr.strip().splitlines()[-3:]))
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return TensorBytes({int(side): peak for side, peak in result["peaks"].items()}, result["steady"])


class LiveTensors(TorchDispatchMode):
    """Tracks the memory of all tensors created in its context: ``held`` now, and the highest value ``peak`` (bytes)."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_get_storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _get_storage_id(leaf) not in inputs:
                self._track(leaf)
        return result

    def _track(self, tensor: torch.Tensor) -> None:
        key, size = _get_storage_id(tensor), tensor.untyped_storage().nbytes()
        if key in self._known or not size:
            return
        self._known[key] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(tensor.untyped_storage(), self._release, key)

    def _release(self, key: int) -> None:
        self.held -= self._known.pop(key, 0)


def _get_storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _main(json_options: str) -> None:
    options = TrainingOptions.from_json(json.loads(json_options))
    device = torch.device("cpu")
    peaks, steady = {}, 0
    for side in SMALL_PATCHES:
        network = create_network(options, device)
        weights = sum(parameter.nbytes for parameter in network.parameters())
        # Weights, gradients, one or two moments, and EMA weights.
        copies = 2 + (2 if options.optimizer == "adamw" else 1) + (1 if options.ema_decay else 0)
        steady = copies * weights
        small = replace(options, patch=(side, side, side))
        largest = 0
        for variant in select_variants(options):
            with LiveTensors() as living:
                run_step(network, variant, small, device)
            largest = max(largest, living.peak)
        peaks[side] = largest
    print(json.dumps(asdict(TensorBytes(peaks, steady))))


if __name__ == "__main__":
    _main(sys.argv[1])
