"""A running average of the weights: steadier than the last step's when batches are small."""

from __future__ import annotations

import copy

import torch
from torch import nn


class AveragedWeights:
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
