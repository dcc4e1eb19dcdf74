"""``dca segment`` with some windows replayed, as other programs are measured.

Run: python -m DCASegmentationLib.benchmark.ours CT OUT --model BUNDLE [--windows K] [--options JSON]

The same job from the CT's file to a folder of results; ``--options`` are fields of
``inference.options.SegmentOptions``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..bundle.loading import Bundle
from ..inference.allocator import keep_freed_memory
from ..inference.options import SegmentOptions
from ..inference.runtimes.choosing import AUTO
from ..inference.runtimes.runtime import Runtime, Task
from ..inference.segmenter import Segmenter
from ..job import Job, segment_to_folder
from ..method.level_by_level import Answer
from .windows import Windows, add_arguments


class _CountedRuntime:
    """A runtime of which only the first windows are computed."""

    def __init__(self, runtime: Runtime, real: int | None) -> None:
        self.name = runtime.name
        self.needs_network = runtime.needs_network
        self.windows_at_once = runtime.windows_at_once
        self.rest = runtime.rest
        self.windows = Windows(runtime, real, _first)

    def __call__(self, windows: Tensor) -> Answer:
        return self.windows(windows)


class _CountedSegmenter(Segmenter):
    def __init__(self, bundle: Bundle, real: int | None) -> None:
        super().__init__(bundle, "cpu", runtime=AUTO)
        self._real = real
        self.counted: _CountedRuntime | None = None

    def _runtime_for(
        self, task: Task, volume: torch.Tensor, tell: Callable[[str], None], warn: Callable[[str], None]
    ) -> Runtime:
        if self.counted is None:
            self.counted = _CountedRuntime(super()._runtime_for(task, volume, tell, warn), self._real)
        return self.counted


def _first(answer: Answer, count: int) -> Answer:
    """No copy: a runtime's answer is not written into, and it stays where it is while nothing else is computed."""
    both = (answer.aggregated, answer.stitched)
    aggregated, stitched = (None if logits is None else logits[:count] for logits in both)
    return Answer(aggregated, stitched, {level: each[:count] for level, each in answer.attention.items()})


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--options", type=json.loads, default={}, help="what to ask for, as JSON")
    told = parser.parse_args()
    keep_freed_memory()
    bundle = Bundle.load(told.model)
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.options.items()}
    segmenter = _CountedSegmenter(bundle, told.windows)
    job = Job(told.ct, told.out, bundle, SegmentOptions(**options), "cpu", extension=".nii.gz")
    segment_to_folder(job, segmenter=segmenter)
    if told.report and segmenter.counted is not None:
        segmenter.counted.windows.costs.write(told.report)


if __name__ == "__main__":
    main()
