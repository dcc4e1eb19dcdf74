"""Backend torch.compile: compiles the network for its patch. Needs a C++ compiler and half a minute at each start."""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor

from ...method.streaming import StreamedOutput
from .base import Task, WindowNetwork, run_one_by_one


class CompiledBackend:
    """Runs the network compiled by TorchInductor, with its weights as constants, on one window at a time."""

    name = "compile"
    needs_network = True
    windows_at_once = 1

    def __init__(self, task: Task) -> None:
        self._wanted = task.wanted
        whole = WindowNetwork(task.network, task.wanted).eval()
        self._run = torch.compile(whole, dynamic=False, options={"freezing": True})

    def __call__(self, windows: Tensor) -> StreamedOutput:
        """Run the network on ``windows``; see ``base.Backend``."""
        # Inductor freezes the weights at the first call, which does not work in inference mode.
        with torch.no_grad():
            return run_one_by_one(windows, self._run, self._wanted)

    def release_memory(self) -> None:
        """Do nothing: this backend holds no memory between windows."""


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that TorchInductor would use, None if none is installed."""
    from_environment = os.environ.get("CXX")
    names = [from_environment] if from_environment else ["cl"] if os.name == "nt" else ["g++", "clang++"]
    return next((found for found in map(shutil.which, names) if found), None)
