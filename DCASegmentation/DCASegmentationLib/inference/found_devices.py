"""What this computer has to compute on, in words for the user, and why the rest is missing."""

from __future__ import annotations

import sys

import torch


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
