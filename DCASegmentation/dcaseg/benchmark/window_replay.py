"""``dca segment`` with only the first windows computed and the others replayed, as other programs are measured.

A program that takes half an hour for a CT cannot be measured again and again. Its windows all cost the same, so a few
are measured, and instead of the others the last answer is given once more, as a copy. Everything around the network is
then real, its memory too, and only the network's time is extrapolated: windows x median of those computed.

Run: python -m dcaseg.benchmark.window_replay CT OUT --model BUNDLE [--windows K] [--options JSON]

The same job from the CT's file to a folder of results; ``--options`` are fields of
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
from ..method.streaming import StreamedOutput
from ..models.bundle import Bundle
from .process_cost import Cost

WindowOutput = TypeVar("WindowOutput")


@dataclass(frozen=True)
class WindowCosts:
    """Seconds of the windows of one run: ``cpu_s`` and ``wall_s`` of each one computed, and of all replays together."""

    total: int
    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    replay_cpu_s: float = 0.0
    replay_wall_s: float = 0.0

    @property
    def replayed(self) -> int:
        """Windows that were not computed."""
        return self.total - len(self.cpu_s)

    def extrapolated(self, cost: Cost) -> Cost:
        """What the process of ``cost`` would have cost with all windows computed; memory is as measured."""
        if not self.replayed:
            return cost
        return replace(
            cost,
            cpu_s=cost.cpu_s - self.replay_cpu_s + self.replayed * statistics.median(self.cpu_s),
            wall_s=cost.wall_s - self.replay_wall_s + self.replayed * statistics.median(self.wall_s),
        )

    def write(self, path: Path) -> None:
        """As JSON, for the process that measures."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> WindowCosts:
        """What ``write`` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "cpu_s": tuple(told["cpu_s"]), "wall_s": tuple(told["wall_s"])})


class Windows(Generic[WindowOutput]):
    """Stands in the network's place: computes the first ``real`` windows (None: all), then replays the last answer.

    ``copied(answer, n)`` gives a copy of the first n windows of an answer. A batch is computed as a whole.
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
        """The answer to windows (batch, channel, depth, height, width)."""
        batch = len(windows)
        self._total += batch
        cpu, wall = time.process_time(), time.perf_counter()
        if self._last is not None and batch <= self._last[1]:
            # A copy, since whoever gets it may write into it.
            answer = self._copied(self._last[0], batch)
            self._replays[0] += time.process_time() - cpu
            self._replays[1] += time.perf_counter() - wall
            return answer
        answer = self._network(windows)
        taken = (time.process_time() - cpu) / batch, (time.perf_counter() - wall) / batch
        self._computed += [taken] * batch
        if self._real is not None and len(self._computed) >= self._real:
            self._last = self._copied(answer, batch), batch
        return answer

    @property
    def costs(self) -> WindowCosts:
        """What was measured until now."""
        cpu, wall = zip(*self._computed, strict=True) if self._computed else ((), ())
        return WindowCosts(self._total, cpu, wall, *self._replays)


def copied_tensor(answer: Tensor, count: int) -> Tensor:
    """The first ``count`` windows of a network's output."""
    return answer[:count].clone()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every peer's program is told: CT, output, spacing, windows to compute, where to report, threads."""
    parser.add_argument("ct", type=Path, help="the CT, a NIfTI file")
    parser.add_argument("out", type=Path, help="the label map to write, .nii.gz")
    parser.add_argument("--spacing", type=float, default=1.5, help="spacing of the model in mm")
    parser.add_argument("--windows", type=int, default=None, help="windows to compute; all, if left out")
    parser.add_argument("--report", type=Path, default=None, help="JSON file with the windows' times")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")


class CountedBackend:
    """A runtime of which only the first windows are computed."""

    def __init__(self, runtime: Backend, real: int | None) -> None:
        self.name = runtime.name
        self.needs_network = runtime.needs_network
        self.windows_at_once = runtime.windows_at_once
        self.rest = runtime.rest
        self.windows = Windows(runtime, real, _first)

    def __call__(self, windows: Tensor) -> StreamedOutput:
        return self.windows(windows)


class CountedSegmenter(Segmenter):
    """On the CPU; ``real`` windows are computed (None: all). ``counted`` is the runtime, once there is one."""

    def __init__(self, bundle: Bundle, real: int | None) -> None:
        super().__init__(bundle, "cpu", runtime=AUTO)
        self._real = real
        self.counted: CountedBackend | None = None

    def _runtime_for(
        self, task: Task, volume: torch.Tensor, tell: Callable[[str], None], warn: Callable[[str], None]
    ) -> Backend:
        if self.counted is None:
            self.counted = CountedBackend(super()._runtime_for(task, volume, tell, warn), self._real)
        return self.counted


def _first(answer: StreamedOutput, count: int) -> StreamedOutput:
    """No copy: a runtime's answer is not written into, and it stays where it is while nothing else is computed."""
    both = (answer.aggregated, answer.stitched)
    aggregated, stitched = (None if logits is None else logits[:count] for logits in both)
    return StreamedOutput(aggregated, stitched, {level: each[:count] for level, each in answer.attention.items()})


def main() -> None:
    """The program."""
    with importing():
        from ..inference.options import SegmentOptions
        from ..inference.pipeline import Job, segment_to_folder
        from ..inference.process_settings import keep_freed_memory
        from ..models.bundle import Bundle

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--options", type=json.loads, default={}, help="what to ask for, as JSON")
    told = parser.parse_args()
    keep_freed_memory()
    bundle = Bundle.load(told.model)
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.options.items()}
    segmenter = CountedSegmenter(bundle, told.windows)
    job = Job(told.ct, told.out, bundle, SegmentOptions(**options), "cpu", extension=".nii.gz")
    segment_to_folder(job, segmenter=segmenter)
    if told.report and segmenter.counted is not None:
        segmenter.counted.windows.costs.write(told.report)


if __name__ == "__main__":
    main()
