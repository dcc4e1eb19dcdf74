"""torch.compile: a program made for this network and patch; needs a C++ compiler, and half a minute at each start."""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor

from ...method.streaming import StreamedOutput
from .base import Task, WindowNetwork, one_by_one


class CompiledBackend:
    """The network compiled by TorchInductor with its weights as constants, for one window at a time."""

    name = "compile"
    needs_network = True
    windows_at_once = 1

    def __init__(self, task: Task) -> None:
        self._wanted = task.wanted
        whole = WindowNetwork(task.network, task.wanted).eval()
        self._run = torch.compile(whole, dynamic=False, options={"freezing": True})

    def __call__(self, windows: Tensor) -> StreamedOutput:
        # Inductor freezes weights only here, and cannot in inference mode.
        with torch.no_grad():
            return one_by_one(windows, self._run, self._wanted)

    def rest(self) -> None:
        """Nothing is held between windows."""


def compiler() -> str | None:
    """The C++ compiler that TorchInductor would use, None where there is none."""
    named = os.environ.get("CXX")
    names = [named] if named else ["cl"] if os.name == "nt" else ["g++", "clang++"]
    return next((found for found in map(shutil.which, names) if found), None)
