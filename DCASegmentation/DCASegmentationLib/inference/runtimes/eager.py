"""PyTorch, layer by layer: runs everywhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ...method.level_by_level import Answer, answer
from .runtime import Task
from .single_window import ConvolutionsByOneDNN, onednn_is_there


class EagerRuntime:
    """PyTorch as it is, in half precision (autocast) where the task's device says so."""

    name = "eager"
    needs_network = True

    def __init__(self, task: Task) -> None:
        self._network = task.network
        self._wanted = task.wanted
        self._half = task.device.half
        self._by_onednn = task.device.torch_device.type == "cpu" and not self._half and onednn_is_there()
        # Without oneDNN a window that comes alone takes several times as long as one of two. GPUs have room for two.
        self.windows_at_once = 1 if self._by_onednn else 2

    def __call__(self, windows: Tensor) -> Answer:
        with torch.inference_mode(), self._way(windows):
            return answer(self._network, windows, self._wanted)

    def _way(self, windows: Tensor) -> AbstractContextManager[object]:
        if self._half:
            return torch.autocast(windows.device.type, torch.float16)
        return ConvolutionsByOneDNN() if self._by_onednn else nullcontext()

    def rest(self) -> None:
        """Nothing is held between windows."""
