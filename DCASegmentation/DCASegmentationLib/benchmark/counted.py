"""Our segmenter with a runtime of which only the first windows are computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..bundle.loading import Bundle
from ..inference.runtimes.choosing import AUTO
from ..inference.runtimes.runtime import Runtime, Task
from ..inference.segmenter import Segmenter
from ..method.level_by_level import Answer
from .windows import Windows


class CountedRuntime:
    """A runtime of which only the first windows are computed."""

    def __init__(self, runtime: Runtime, real: int | None) -> None:
        self.name = runtime.name
        self.needs_network = runtime.needs_network
        self.windows_at_once = runtime.windows_at_once
        self.rest = runtime.rest
        self.windows = Windows(runtime, real, _first)

    def __call__(self, windows: Tensor) -> Answer:
        return self.windows(windows)


class CountedSegmenter(Segmenter):
    """On the CPU; ``real`` windows are computed (None: all). ``counted`` is the runtime, once there is one."""

    def __init__(self, bundle: Bundle, real: int | None) -> None:
        super().__init__(bundle, "cpu", runtime=AUTO)
        self._real = real
        self.counted: CountedRuntime | None = None

    def _runtime_for(
        self, task: Task, volume: torch.Tensor, tell: Callable[[str], None], warn: Callable[[str], None]
    ) -> Runtime:
        if self.counted is None:
            self.counted = CountedRuntime(super()._runtime_for(task, volume, tell, warn), self._real)
        return self.counted


def _first(answer: Answer, count: int) -> Answer:
    """No copy: a runtime's answer is not written into, and it stays where it is while nothing else is computed."""
    both = (answer.aggregated, answer.stitched)
    aggregated, stitched = (None if logits is None else logits[:count] for logits in both)
    return Answer(aggregated, stitched, {level: each[:count] for level, each in answer.attention.items()})
