"""Which devices this computer has, which one runs the network, and what happens when its memory does not suffice."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from ..errors import UserError, is_out_of_memory

__all__ = ["Device", "Plan", "choose_device", "cpu", "is_out_of_memory"]


@dataclass(frozen=True)
class Device:
    """A device to compute on: torch's name for it, what it is in words, and whether it runs in half precision."""

    torch_device: torch.device
    description: str
    half: bool = False


def choose_device(name: str = "auto", half: bool | None = None) -> Device:
    """The device called ``name``: ``auto`` takes CUDA, else MPS (Apple), else the CPU; or ``cpu``, ``mps``, ``cuda:1``.

    ``half`` asks for half precision (float16 autocast); left out, it is on for CUDA. Elsewhere it is never on: CPUs
    are slower with it. Raises UserError for a device that this computer lacks.
    """
    if name == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("PyTorch finds no GPU on this computer.", "Choose auto or cpu.")
    if name in ("auto", "gpu"):
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"There is no device called '{name}'.", "Choose auto, cpu, gpu, cuda, cuda:1 or mps.") from None
    if device.type == "cpu":
        return cpu()
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"PyTorch finds {count} CUDA devices, so '{name}' cannot be used.",
                "Choose auto or cpu, or install a PyTorch with CUDA and a current driver.",
            )
        properties = torch.cuda.get_device_properties(device)
        use_half = half is not False
        precision = "half precision" if use_half else "single precision"
        memory = properties.total_memory / 2**30
        return Device(device, f"{properties.name}, {memory:.0f} GiB, CUDA, {precision}", use_half)
    if device.type == "mps" and torch.backends.mps.is_available():
        return Device(device, "Apple GPU (MPS), single precision")
    raise UserError(f"This computer has no device '{name}' that PyTorch can use.", "Choose auto or cpu.")


def cpu() -> Device:
    """The CPU, in single precision."""
    return Device(torch.device("cpu"), f"CPU, {torch.get_num_threads()} threads")


@dataclass(frozen=True)
class Plan:
    """How windows are run: on which device and how many at once."""

    device: Device
    batch: int

    def after(self, error: Exception) -> tuple[Plan, str] | None:
        """The next, smaller plan after ``error`` and a message about it; None if no other plan could help.

        Out of memory halves the batch, and at a batch of one goes over to the CPU; an operation the device does not
        have goes over to the CPU at once.
        """
        on_cpu = self.device.torch_device.type == "cpu"
        if is_out_of_memory(error):
            if self.batch > 1:
                smaller = self.batch // 2
                return replace(self, batch=smaller), (
                    f"Not enough memory on {self.device.description} for {self.batch} windows at once: "
                    f"going on with {smaller}."
                )
            if not on_cpu:
                return Plan(cpu(), 1), (
                    f"Not enough memory on {self.device.description} for a single window: going on with the CPU."
                )
        elif not on_cpu and isinstance(error, NotImplementedError):
            return Plan(cpu(), self.batch), (
                f"{self.device.description} lacks an operation the network needs: going on with the CPU."
            )
        return None


def found_devices() -> dict[str, str]:
    """The devices that PyTorch can use, by the names that ``choose_device`` takes; automatic choice takes the first."""
    found = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        name = "cuda" if index == 0 else f"cuda:{index}"
        found[name] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return {**found, "cpu": f"{torch.get_num_threads()} threads"}


def missing_devices() -> dict[str, str]:
    """Of CUDA and MPS those that PyTorch cannot use, each with the reason."""
    found = found_devices()
    reasons = {
        "cuda": "none found" if torch.backends.cuda.is_built() else "this PyTorch is built without it",
        "mps": "none found" if sys.platform == "darwin" else "on Apple computers only",
    }
    return {name: reason for name, reason in reasons.items() if name not in found}
