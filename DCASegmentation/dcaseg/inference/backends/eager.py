"""Backend eager: PyTorch, layer by layer. Runs everywhere.

By default, PyTorch (2.13) unfolds a small volume in a batch of 1 (C x D x H up to 20480): it copies the neighborhood of
each voxel, 27 times the features. For a window of the shipped model (8 filters, 48 voxels a side) that took 117 MB of
tensors and 0.38 CPU seconds. oneDNN takes 29 MB and 0.09 s, and 53 MB and 0.09 s each for two windows at once.
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


def has_onednn() -> bool:
    """Whether this build of PyTorch includes oneDNN (not all do), and it is enabled."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class OneDNNConvolutions(TorchFunctionMode):
    """Context in which oneDNN runs the 3D convolutions of a batch of 1 in float32 on the CPU."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if function is torch.conv3d and _is_single(args[0]):
            return _convolve(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _is_single(volume: Tensor) -> bool:
    return volume.device.type == "cpu" and volume.dtype == torch.float32 and volume.ndim == 5 and len(volume) == 1


def _convolve(
    volume: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sides = 1,
    padding: _Sides = 0,
    dilation: _Sides = 1,
    groups: int = 1,
) -> Tensor:
    """Like ``functional.conv3d``, with the padding in voxels."""
    return torch.mkldnn_convolution(
        volume, weight, bias, _to_triple(padding), _to_triple(stride), _to_triple(dilation), groups
    )


def _to_triple(sides: _Sides) -> Sequence[int]:
    return (sides,) * 3 if isinstance(sides, int) else sides


class EagerBackend:
    """Runs the network with plain PyTorch, in half precision (autocast) if the task's device says so."""

    name = "eager"
    needs_network = True

    def __init__(self, task: Task) -> None:
        self._network = task.network
        self._wanted = task.wanted
        self._half = task.device.half
        self._uses_onednn = task.device.torch_device.type == "cpu" and not self._half and has_onednn()
        # Without oneDNN a single window takes several times as long as each of two. GPUs have room for two.
        self.windows_at_once = 1 if self._uses_onednn else 2

    def __call__(self, windows: Tensor) -> StreamedOutput:
        """Run the network on ``windows``; see ``base.Backend``."""
        with torch.inference_mode(), self._make_context(windows):
            return streaming.forward(self._network, windows, self._wanted)

    def _make_context(self, windows: Tensor) -> AbstractContextManager[object]:
        if self._half:
            return torch.autocast(windows.device.type, torch.float16)
        return OneDNNConvolutions() if self._uses_onednn else nullcontext()

    def release_memory(self) -> None:
        """Do nothing: this backend holds no memory between windows."""
