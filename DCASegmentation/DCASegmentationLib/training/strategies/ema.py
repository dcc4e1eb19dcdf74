"""Networks that follow others as an exponential moving average (EMA): teachers, and decoders that also learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, decay: float) -> None:
    """Move ``follower``'s weights by 1 - ``decay`` of the way to ``leader``'s, and copy its norm statistics."""
    for kept, new in zip(follower.parameters(), leader.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
    for statistic, current in zip(follower.buffers(), leader.buffers(), strict=True):
        statistic.copy_(current)


def grown_decay(step: int, limit: float) -> float:
    """The decay after ``step``, from 1/2 at step 0 up to ``limit``: a young teacher forgets its start."""
    return min(1 - 1 / (step + 2), limit)


@torch.no_grad()
def moved(old: Tensor, new: Tensor, decay: float) -> None:
    """Move ``old`` in place by 1 - ``decay`` of the way to ``new``."""
    old.lerp_(new.to(old), 1 - decay)
