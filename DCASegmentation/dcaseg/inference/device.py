"""The devices of this computer, the choice of one, and the fallback when its memory runs out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from ..errors import UserError, is_out_of_memory


@dataclass(frozen=True)
class Device:
    """A device to compute on: torch's device, a description for people, and whether it runs in half precision."""

    torch_device: torch.device
    description: str
    half: bool = False


def choose_device(name: str = "auto", half: bool | None = None) -> Device:
    """Return the device called ``name``.

    ``auto`` takes CUDA if available, then MPS (Apple), then the CPU; ``gpu`` takes one of the first two. Other names
    are torch's: ``cpu``, ``mps``, ``cuda``, ``cuda:1``. ``half`` requests half precision (float16 autocast); None means
    half precision on CUDA. Other devices always run in single precision: CPUs are slower in half precision. Raises
    UserError for a device that this computer does not have.
    """
    if name == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("PyTorch finds no GPU on this computer.", "Choose auto or cpu.")
    if name in ("auto", "gpu"):
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"'{name}' is not the name of a device.", "Choose auto, cpu, gpu, cuda, cuda:1 or mps."
        ) from None
    if device.type == "cpu":
        return make_cpu_device()
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"PyTorch finds {count} CUDA {'device' if count == 1 else 'devices'}, so '{name}' cannot be used.",
                "Choose auto or cpu, or install a build of PyTorch with CUDA and a current driver.",
            )
        properties = torch.cuda.get_device_properties(device)
        use_half = half is not False
        precision = "half precision" if use_half else "single precision"
        memory = properties.total_memory / 2**30
        return Device(device, f"{properties.name}, {memory:.0f} GiB, CUDA, {precision}", use_half)
    if device.type == "mps" and torch.backends.mps.is_available():
        return Device(device, "Apple GPU (MPS), single precision")
    raise UserError(f"PyTorch cannot use the device '{name}' on this computer.", "Choose auto or cpu.")


def make_cpu_device() -> Device:
    """Return the CPU, in single precision."""
    return Device(torch.device("cpu"), f"CPU, {_format_threads()}")


@dataclass(frozen=True)
class Plan:
    """How to run the windows: the device, and the number of windows in a batch."""

    device: Device
    batch: int

    def get_fallback(self, error: Exception) -> tuple[Plan, str] | None:
        """Return the plan to try after ``error`` and a message about it, or None if no other plan can help.

        Running out of memory halves the batch; with a batch of 1 it moves the work to the CPU. An operation that the
        device does not implement moves the work to the CPU at once.
        """
        on_cpu = self.device.torch_device.type == "cpu"
        if is_out_of_memory(error):
            if self.batch > 1:
                smaller = self.batch // 2
                return replace(self, batch=smaller), (
                    f"{self.device.description} does not have enough memory for {self.batch} windows at once: "
                    f"continuing with {smaller}."
                )
            if not on_cpu:
                return Plan(make_cpu_device(), 1), (
                    f"{self.device.description} does not have enough memory for a single window: continuing on the CPU."
                )
        elif not on_cpu and isinstance(error, NotImplementedError):
            return Plan(make_cpu_device(), self.batch), (
                f"{self.device.description} lacks an operation that the network needs: continuing on the CPU."
            )
        return None


def find_devices() -> dict[str, str]:
    """Return the devices that PyTorch can use: name (as ``choose_device`` takes it) to description.

    The order is that of preference: ``auto`` takes the first.
    """
    found = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        name = "cuda" if index == 0 else f"cuda:{index}"
        found[name] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return {**found, "cpu": _format_threads()}


def find_missing_devices() -> dict[str, str]:
    """Return those of CUDA and MPS that PyTorch cannot use: name to reason."""
    found = find_devices()
    reasons = {
        "cuda": "none found" if torch.backends.cuda.is_built() else "this build of PyTorch does not include it",
        "mps": "none found" if sys.platform == "darwin" else "only on Apple computers",
    }
    return {name: reason for name, reason in reasons.items() if name not in found}


def _format_threads() -> str:
    count = torch.get_num_threads()
    return "1 thread" if count == 1 else f"{count} threads"
