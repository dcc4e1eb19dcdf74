"""Diffusion of label maps for A&D: noise added step by step, and taken away by a network that predicts the clean map.

A label map is x0 = 2 one-hot - 1, (batch, channel, depth, height, width). After Ho et al. 2020 and, for fewer steps
without new noise (DDIM, eta 0), Song et al. 2021. Computed in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

TIMES = 1000


def signal_shares(device: torch.device) -> Tensor:
    """The share ᾱ_t of the clean map's variance that is left at time t, (1000,); β rises linearly."""
    beta = torch.linspace(1e-4, 0.02, TIMES, dtype=torch.double)
    return (1 - beta).cumprod(dim=0).float().to(device)


def encoded(labels: Tensor, n_channels: int) -> Tensor:
    """x0 of labels (batch, depth, height, width)."""
    return 2 * functional.one_hot(labels, n_channels).movedim(-1, 1).float() - 1


def noised(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t of x0 at ``times`` (batch,)."""
    share = signal_shares(clean.device)[times].view(-1, 1, 1, 1, 1)
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def denoised(predict: Callable[[Tensor, Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The clean map that ``predict`` (of x_t and times, x0 in -1..1) leads to from noise, in so many DDIM steps."""
    shares = signal_shares(start.device)
    times = torch.linspace(TIMES - 1, 0, steps).round().long().tolist()
    current, clean = start, start
    for time, following in zip(times, [*times[1:], None], strict=True):
        clean = predict(current, torch.full((len(start),), time, device=start.device)).clamp(-1, 1)
        if following is not None:
            noise = (current - shares[time].sqrt() * clean) / (1 - shares[time]).sqrt()
            current = shares[following].sqrt() * clean + (1 - shares[following]).sqrt() * noise
    return clean


class TimeEmbedding(nn.Module):
    """A vector for each time: sines and cosines of 64 frequencies, then two layers."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, times: Tensor) -> Tensor:
        """(batch, width) of times (batch,)."""
        frequencies = torch.exp(-math.log(10000) * torch.arange(64, device=times.device) / 63)
        angles = times.float()[:, None] * frequencies
        embedded: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded
