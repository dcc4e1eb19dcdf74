"""Exponential moving averages (EMA) of weights: of the trained network, and in teacher networks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of ``network`` (attribute ``network``) whose weights are the exponential moving average of its weights.

    The decay starts small and grows to ``decay``, so that the initial weights are soon forgotten. ``updates`` counts
    the updates.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay = decay
        self.updates = 0

    def reset(self, network: nn.Module) -> None:
        """Restart the average at the weights of ``network``."""
        self.network.load_state_dict(network.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the current weights of ``network`` to the average, and copy its buffers (norm statistics)."""
        self.updates += 1
        update_teacher(self.network, network, min(self._decay, (1 + self.updates) / (10 + self.updates)))


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Set the teacher's weights to ``decay`` times themselves plus (1 - ``decay``) times the student's; copy
    buffers."""
    for average, current in zip(teacher.parameters(), student.parameters(), strict=True):
        average.lerp_(current, 1 - decay)
    for statistic, current_statistic in zip(teacher.buffers(), student.buffers(), strict=True):
        statistic.copy_(current_statistic)


def compute_warmup_decay(step: int, limit: float) -> float:
    """The decay after ``step``: it grows from 1/2 at step 0 to ``limit``, so that a teacher forgets its start."""
    return min(1 - 1 / (step + 2), limit)


@torch.no_grad()
def update_average(average: Tensor, new: Tensor, decay: float) -> None:
    """Set ``average`` in place to ``decay`` times itself plus (1 - ``decay``) times ``new``."""
    average.lerp_(new.to(average), 1 - decay)
