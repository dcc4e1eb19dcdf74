"""Half precision on a CUDA GPU, channels last, as a CUDA graph.

Nothing in the network may come from the CPU while a graph is captured, be it a list of indices. A runtime is used only
after its answer on a window of the CT was compared with eager's (``choosing``), and one that fails is left out.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from ...method import streaming
from ...method.streaming import StreamedOutput
from .base import Task, as_tuple, from_tuple

_WARM_UPS = 3


class CudaHalfBackend:
    """The network's weights and features in float16, channels last; each batch size is captured as a graph once."""

    name = "cuda-half"
    needs_network = False
    windows_at_once = 2

    def __init__(self, task: Task) -> None:
        self._wanted = task.wanted
        self._network = deepcopy(task.network).half()
        # mypy knows no memory_format here.
        self._network = self._network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> StreamedOutput:
        ready = windows.half().contiguous(memory_format=torch.channels_last_3d)
        if len(windows) not in self._graphs:
            self._graphs[len(windows)] = self._captured(ready)
        graph, taken, given = self._graphs[len(windows)]
        taken.copy_(ready)
        graph.replay()
        # The graph writes into the same tensors again at its next turn.
        return from_tuple(tuple(values.float() for values in given), self._wanted)

    def rest(self) -> None:
        """A graph's memory is its own as long as it lives."""

    def _captured(self, windows: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        taken = windows.clone(memory_format=torch.preserve_format)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                streaming.forward(self._network, taken, self._wanted)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            given = as_tuple(streaming.forward(self._network, taken, self._wanted))
        return graph, taken, given
