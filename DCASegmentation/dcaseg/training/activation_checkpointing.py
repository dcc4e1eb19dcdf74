"""Activation checkpointing: the same gradient in less memory, by recomputing activations in the backward pass.

Splitting a batch would change the loss, because its class weights and Dice are means over the whole batch. Recomputing
activations does not change it. Only the inputs of the blocks are stored, and the activations inside one block at a time
(Chen et al., "Training deep nets with sublinear memory cost", 2016).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..method.vnet import ConvBlock

LEVELS = 2
"""The highest level: 0 stores all activations, 1 recomputes those of a block, 2 does so for one patch at a time."""


def save_memory(module: nn.Module, level: int) -> None:
    """Make the convolution blocks of ``module`` store fewer activations (see ``LEVELS``). Their results do not change.

    At level 2, blocks with batch norm stay at level 1, because they need the statistics of the whole batch.
    """
    for block in module.modules():
        if not isinstance(block, ConvBlock):
            continue
        if "forward" in block.__dict__:
            del block.__dict__["forward"]
        if level:
            per_patch = level > 1 and not any(isinstance(layer, nn.BatchNorm3d) for layer in block.modules())
            # An attribute of the instance takes precedence over the method of its class.
            block.__dict__["forward"] = partial(_checkpoint_forward, type(block).forward.__get__(block), per_patch)


def _checkpoint_forward(forward: Any, per_patch: bool, features: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        result: Tensor = forward(features)
        return result
    parts = features.split(1) if per_patch else (features,)
    return torch.cat([checkpoint(forward, part, use_reentrant=False) for part in parts])
