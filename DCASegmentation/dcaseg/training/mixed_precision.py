"""Mixed precision: the number format in which the network is trained on a device.

Convolutions use the shorter format. Weights, logits, losses, gradients of weights and the optimizer remain in single
precision.
"""

from __future__ import annotations

import torch


def select_autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The format for ``device``: half precision on CUDA, bfloat16 on processors with AMX, or None for single precision.

    Without AMX, bfloat16 is slower than single precision on many processors.
    """
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and _has_amx():
        return torch.bfloat16
    return None


def _has_amx() -> bool:
    # Newer versions of PyTorch have a public function for it.
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(is_supported is not None and is_supported())
