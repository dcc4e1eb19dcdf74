"""Measures pipelines of which only the first windows are computed and the others replayed.

A program that needs half an hour for a CT cannot be measured many times. All windows cost the same, so only a few are
computed, and the others get a copy of the last output. Everything around the network is real, including memory, and
only the network's time is extrapolated: the number of windows times the median of the computed ones.

Run: python -m dcaseg.benchmark.window_replay CT OUT --model BUNDLE [--windows K] [--options JSON]

The command does the same as ``dca segment``, from the CT file to a result folder; ``--options`` are fields of
``inference.options.SegmentOptions``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..inference.backends.base import Backend, Task
from ..inference.backends.selection import AUTO
from ..inference.process_settings import importing
from ..inference.segmenter import Segmenter
from ..json_io import load, read_json
from ..method.streaming import StreamedOutput
from ..models.bundle import Bundle
from .process_cost import Cost

WindowOutput = TypeVar("WindowOutput")


@dataclass(frozen=True)
class WindowCosts:
    """Times (s) of the windows of a run: ``cpu_s`` and ``wall_s`` of each computed one, and of all replays together."""

    total: int
    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    replay_cpu_s: float = 0.0
    replay_wall_s: float = 0.0

    @property
    def replayed(self) -> int:
        """Number of windows that were not computed."""
        return self.total - len(self.cpu_s)

    def extrapolate(self, cost: Cost) -> Cost:
        """The cost of the process if all windows had been computed. Memory is as measured."""
        if not self.replayed:
            return cost
        return replace(
            cost,
            cpu_s=cost.cpu_s - self.replay_cpu_s + self.replayed * statistics.median(self.cpu_s),
            wall_s=cost.wall_s - self.replay_wall_s + self.replayed * statistics.median(self.wall_s),
        )

    def write(self, path: Path) -> None:
        """Write the costs as JSON for the measuring process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> WindowCosts:
        """Read a file from ``write``."""
        return load(cls, read_json(path))


class Windows(Generic[WindowOutput]):
    """Replaces a network: computes the first ``real`` windows (None: all), then replays the last output.

    ``copied(output, n)`` returns a copy of the first n windows of an output. A batch is computed as a whole. Raises
    ValueError if ``real`` is below 1.
    """

    def __init__(
        self,
        network: Callable[[Tensor], WindowOutput],
        real: int | None,
        copied: Callable[[WindowOutput, int], WindowOutput],
    ) -> None:
        if real is not None and real < 1:
            raise ValueError(f"at least one window must be computed, not {real}")
        self._network = network
        self._real = real
        self._copied = copied
        self._last: tuple[WindowOutput, int] | None = None
        self._total = 0
        self._computed: list[tuple[float, float]] = []
        self._replays = [0.0, 0.0]

    def __call__(self, windows: Tensor) -> WindowOutput:
        """The output for ``windows`` (batch, channel, depth, height, width)."""
        batch = len(windows)
        self._total += batch
        cpu, wall = time.process_time(), time.perf_counter()
        if self._last is not None and batch <= self._last[1]:
            # A copy, since the caller may write into it.
            output = self._copied(self._last[0], batch)
            self._replays[0] += time.process_time() - cpu
            self._replays[1] += time.perf_counter() - wall
            return output
        output = self._network(windows)
        times = (time.process_time() - cpu) / batch, (time.perf_counter() - wall) / batch
        self._computed += [times] * batch
        if self._real is not None and len(self._computed) >= self._real:
            self._last = self._copied(output, batch), batch
        return output

    @property
    def costs(self) -> WindowCosts:
        """The costs measured so far."""
        cpu, wall = zip(*self._computed, strict=True) if self._computed else ((), ())
        return WindowCosts(self._total, cpu, wall, *self._replays)


def copy_windows(output: Tensor, count: int) -> Tensor:
    """A copy of the first ``count`` windows of ``output`` (batch, channel, depth, height, width)."""
    return output[:count].clone()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments shared by all programs: CT, output, spacing, number of windows, report and model."""
    parser.add_argument("ct", type=Path, help="the CT, a NIfTI file")
    parser.add_argument("out", type=Path, help="the label map to write, .nii.gz")
    parser.add_argument("--spacing", type=float, default=1.5, help="spacing of the model in mm")
    parser.add_argument("--windows", type=int, default=None, help="number of windows to compute (default: all)")
    parser.add_argument("--report", type=Path, default=None, help="JSON file for the times of the windows")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")


class CountedBackend:
    """Wraps a backend so that only the first windows are computed."""

    def __init__(self, backend: Backend, real: int | None) -> None:
        self.name = backend.name
        self.needs_network = backend.needs_network
        self.windows_at_once = backend.windows_at_once
        self.release_memory = backend.release_memory
        self.windows = Windows(backend, real, _slice_windows)

    def __call__(self, windows: Tensor) -> StreamedOutput:
        """The output for ``windows`` (batch, 1, depth, height, width)."""
        return self.windows(windows)


class CountedSegmenter(Segmenter):
    """A segmenter on the CPU that computes ``real`` windows (None: all). ``counted`` is its backend after the first
    use."""

    def __init__(self, bundle: Bundle, real: int | None) -> None:
        super().__init__(bundle, "cpu", backend=AUTO)
        self._real = real
        self.counted: CountedBackend | None = None

    def _get_backend(
        self, task: Task, volume: torch.Tensor, report: Callable[[str], None], warn: Callable[[str], None]
    ) -> Backend:
        if self.counted is None:
            self.counted = CountedBackend(super()._get_backend(task, volume, report, warn), self._real)
        return self.counted


def _slice_windows(answer: StreamedOutput, count: int) -> StreamedOutput:
    """The first ``count`` windows of ``answer``, without a copy.

    Nothing writes into a backend's output, and it stays valid until the next computation.
    """
    both = (answer.aggregated, answer.stitched)
    aggregated, stitched = (None if logits is None else logits[:count] for logits in both)
    return StreamedOutput(aggregated, stitched, {level: maps[:count] for level, maps in answer.attention.items()})


def main() -> None:
    """Segment a CT and write the times of its windows."""
    with importing():
        from ..inference.options import SegmentOptions
        from ..inference.pipeline import Job, segment_to_folder
        from ..inference.process_settings import keep_freed_memory
        from ..models.bundle import Bundle

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--options", type=json.loads, default={}, help="options of the segmentation, as JSON")
    args = parser.parse_args()
    keep_freed_memory()
    bundle = Bundle.load(args.model)
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in args.options.items()}
    segmenter = CountedSegmenter(bundle, args.windows)
    job = Job(args.ct, args.out, bundle, SegmentOptions(**options), "cpu", extension=".nii.gz")
    segment_to_folder(job, segmenter=segmenter)
    if args.report and segmenter.counted is not None:
        segmenter.counted.windows.costs.write(args.report)


if __name__ == "__main__":
    main()
