"""Runtimes by name, and which of them this computer can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...errors import UserError
from ..device import Device
from .compiled import CompiledRuntime, compiler
from .cuda_half import CudaHalfRuntime
from .eager import EagerRuntime
from .openvino_cpu import OpenVINORuntime, is_installed
from .runtime import Runtime, Task

RUNTIMES: Mapping[str, Callable[[Task], Runtime]] = {
    kind.name: kind for kind in (EagerRuntime, OpenVINORuntime, CompiledRuntime, CudaHalfRuntime)
}


def hindrance(name: str, device: Device) -> tuple[str, str] | None:
    """Why runtime ``name`` cannot run on ``device`` and what to do about it; None where nothing speaks against it."""
    kind = device.torch_device.type
    if name == OpenVINORuntime.name:
        if kind != "cpu":
            return f"The runtime openvino is for the CPU, not for {device.description}.", "Add --device cpu."
        if not is_installed():
            return "OpenVINO is not installed.", 'Install it: pip install "dca-segmentation[openvino]"'
    elif name == CompiledRuntime.name:
        if kind == "mps":
            return "The runtime compile is for the CPU and CUDA.", "Choose eager."
        if kind == "cpu" and compiler() is None:
            return "The runtime compile needs a C++ compiler.", "Install one (g++, clang++ or Visual C++)."
    elif name == CudaHalfRuntime.name and (kind != "cuda" or not device.half):
        return "The runtime cuda-half is for a CUDA GPU in half precision.", "Choose auto or eager."
    return None


def make_runtime(name: str, task: Task) -> Runtime:
    """Runtime ``name``, one of ``RUNTIMES``, for ``task``. Raises UserError for what cannot run here."""
    if reason := hindrance(name, task.device):
        raise UserError(*reason)
    try:
        return RUNTIMES[name](task)
    except (RuntimeError, ValueError, OSError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"The runtime {name} cannot run this model: {why}.", "Choose auto or eager.") from error
