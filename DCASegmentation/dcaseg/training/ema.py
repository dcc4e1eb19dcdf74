"""Exponential moving averages (EMA) of weights: of the trained network, and of teachers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Keeps ``network``'s exponentially averaged copy; ``decay`` grows from small so that the start is forgotten."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay = decay
        self.updates = 0

    def start_from(self, network: nn.Module) -> None:
        """Forget what was averaged and begin at ``network``."""
        self.network.load_state_dict(network.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for kept, new in zip(self.network.parameters(), network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for statistic, current in zip(self.network.buffers(), network.buffers(), strict=True):
            statistic.copy_(current)


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
