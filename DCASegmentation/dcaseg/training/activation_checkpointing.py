"""The same gradient in less memory: activations that are computed again in the backward pass, patch by patch.

Splitting a batch would change the loss, whose weights and Dice are means over the whole batch. Computing each block's
activations again does not: only the inputs of blocks are kept, and the inside of one block at a time (Chen et al.,
"Training deep nets with sublinear memory cost", 2016).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..method.vnet import ConvBlock

LEVELS = 2
"""0 keeps all activations, 1 computes those of a block again, 2 does so for one patch at a time."""


def save_memory(module: nn.Module, level: int) -> None:
    """Let ``module``'s blocks of convolutions keep less, by ``level``; what they compute stays the same.

    At level 2 blocks with batch norm stay at level 1: their statistics are those of the whole batch.
    """
    for block in module.modules():
        if not isinstance(block, ConvBlock):
            continue
        if "forward" in block.__dict__:
            del block.__dict__["forward"]
        if level:
            alone = level > 1 and not any(isinstance(part, nn.BatchNorm3d) for part in block.modules())
            # An attribute of the instance goes before the method of its class.
            block.__dict__["forward"] = partial(_again, type(block).forward.__get__(block), alone)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch could not get memory, of a GPU or of the computer."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def _again(forward: Any, alone: bool, features: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        plain: Tensor = forward(features)
        return plain
    parts = features.split(1) if alone else (features,)
    return torch.cat([checkpoint(forward, part, use_reentrant=False) for part in parts])
