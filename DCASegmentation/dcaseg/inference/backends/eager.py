"""PyTorch, layer by layer: runs everywhere.

Left to itself PyTorch (2.13) unfolds a small volume that comes alone, C x D x H up to 20480: the neighborhood of every
voxel is copied, 27 times the features. Of a window of the shipped model (8 filters, 48 voxels a side) that held 117 MB
of tensors and took 0.38 CPU seconds; with oneDNN it is 29 MB and 0.09, and two windows at once 53 MB and 0.09 each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...method import streaming
from ...method.streaming import StreamedOutput
from .base import Task

_Sides = int | Sequence[int]


def onednn_is_there() -> bool:
    """Whether this PyTorch has oneDNN, which not every build for every processor does, and may use it."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class ConvolutionsByOneDNN(TorchFunctionMode):
    """Where it is entered, 3D convolutions of a single volume in float32 on the CPU are oneDNN's."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls instead of each of its functions."""
        if function is torch.conv3d and _is_single(args[0]):
            return _convolved(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _is_single(volume: Tensor) -> bool:
    return volume.device.type == "cpu" and volume.dtype == torch.float32 and volume.ndim == 5 and len(volume) == 1


def _convolved(
    volume: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sides = 1,
    padding: _Sides = 0,
    dilation: _Sides = 1,
    groups: int = 1,
) -> Tensor:
    """As ``functional.conv3d`` with padding in voxels."""
    return torch.mkldnn_convolution(volume, weight, bias, _three(padding), _three(stride), _three(dilation), groups)


def _three(sides: _Sides) -> Sequence[int]:
    return (sides,) * 3 if isinstance(sides, int) else sides


class EagerBackend:
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

    def __call__(self, windows: Tensor) -> StreamedOutput:
        with torch.inference_mode(), self._way(windows):
            return streaming.forward(self._network, windows, self._wanted)

    def _way(self, windows: Tensor) -> AbstractContextManager[object]:
        if self._half:
            return torch.autocast(windows.device.type, torch.float16)
        return ConvolutionsByOneDNN() if self._by_onednn else nullcontext()

    def rest(self) -> None:
        """Nothing is held between windows."""
