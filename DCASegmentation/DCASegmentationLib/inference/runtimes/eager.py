"""PyTorch, layer by layer: runs everywhere."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ...method.level_by_level import Answer, answer
from .runtime import Task


class EagerRuntime:
    """PyTorch as it is, in half precision (autocast) where the task's device says so."""

    name = "eager"
    needs_network = True
    # On CPUs torch's convolutions take twice the time for each window that comes alone.
    windows_at_once = 2

    def __init__(self, task: Task) -> None:
        self._network = task.network
        self._wanted = task.wanted
        self._half = task.device.half

    def __call__(self, windows: Tensor) -> Answer:
        precision = torch.autocast(windows.device.type, torch.float16) if self._half else nullcontext()
        with torch.inference_mode(), precision:
            return answer(self._network, windows, self._wanted)

    def rest(self) -> None:
        """Nothing is held between windows."""
