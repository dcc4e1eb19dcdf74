"""Backend for CUDA GPUs: half precision, channels last, captured as a CUDA graph.

While a graph is captured, the network must not read anything from the CPU, not even a list of indices. ``selection``
uses this backend only after comparing its output for a window of the CT with that of the eager backend.
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
    """Runs the network in float16, channels last; captures one CUDA graph for each batch size."""

    name = "cuda-half"
    needs_network = False
    windows_at_once = 2

    def __init__(self, task: Task) -> None:
        self._wanted = task.wanted
        self._network = deepcopy(task.network).half()
        # torch's type hints lack memory_format here.
        self._network = self._network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> StreamedOutput:
        """Run the network on ``windows``; see ``base.Backend``."""
        half = windows.half().contiguous(memory_format=torch.channels_last_3d)
        if len(windows) not in self._graphs:
            self._graphs[len(windows)] = self._capture(half)
        graph, static_input, static_output = self._graphs[len(windows)]
        static_input.copy_(half)
        graph.replay()
        # The next replay writes into the same tensors.
        return from_tuple(tuple(values.float() for values in static_output), self._wanted)

    def release_memory(self) -> None:
        """Do nothing: a graph keeps its memory as long as it exists."""

    def _capture(self, windows: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        """Capture a graph for the batch size of ``windows``; returns it with its input and output tensors."""
        static_input = windows.clone(memory_format=torch.preserve_format)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(_WARM_UPS):
                streaming.forward(self._network, static_input, self._wanted)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            static_output = as_tuple(streaming.forward(self._network, static_input, self._wanted))
        return graph, static_input, static_output
