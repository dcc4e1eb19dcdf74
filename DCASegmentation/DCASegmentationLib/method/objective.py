"""The loss of the paper: supervised experts, an aggregation decoder taught by stitched pseudo-labels, and its ramp."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

DiceChannels = Literal["all", "owned", "present"]

_SMOOTH = 1e-5


def segmentation_loss(
    logits: Tensor, labels: Tensor, dice_channels: DiceChannels = "all", owned: Iterable[int] = ()
) -> Tensor:
    """L_seg = (Dice + cross-entropy) / 2.

    ``logits`` are (batch, channel, depth, height, width), ``labels`` integers (batch, depth, height, width). Dice is
    soft, per case, averaged over channels and cases. ``dice_channels`` chooses the channels: ``all`` is the literal
    reading of the paper; after a label split most channels are empty in a patch and hold the loss near one until
    their probability vanishes, so ``owned`` takes background and the ``owned`` labels, and ``present`` the channels
    that occur in the case's labels.
    """
    cross_entropy = functional.cross_entropy(logits, labels.long())
    return (soft_dice_loss(logits, labels, dice_channels, owned) + cross_entropy) / 2


def soft_dice_loss(logits: Tensor, labels: Tensor, dice_channels: DiceChannels, owned: Iterable[int] = ()) -> Tensor:
    """One minus the soft Dice of the channels chosen, see ``segmentation_loss``."""
    n_channels = logits.shape[1]
    probabilities = torch.softmax(logits, dim=1).flatten(2)
    target = functional.one_hot(labels.long(), n_channels).movedim(-1, 1).flatten(2).to(probabilities.dtype)
    overlap = (probabilities * target).sum(dim=2)
    total = probabilities.sum(dim=2) + target.sum(dim=2)
    loss = 1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)
    if dice_channels == "all":
        chosen = torch.ones_like(loss, dtype=torch.bool)
    elif dice_channels == "owned":
        chosen = torch.zeros_like(loss, dtype=torch.bool)
        chosen[:, [0, *owned]] = True
    elif dice_channels == "present":
        chosen = target.sum(dim=2) > 0
    else:
        raise ValueError(f"dice_channels must be 'all', 'owned' or 'present', not {dice_channels!r}")
    return loss[chosen].mean()


def unsupervised_weight(step: int, ramp_steps: int, maximum: float = 10.0) -> float:
    """The weight lambda of the unsupervised loss: ``maximum * exp(-5 (1 - t/T)^2)``, then ``maximum``.

    ``step`` counts iterations from 0; a ramp of 0 steps starts at the maximum.
    """
    if ramp_steps <= 0:
        return maximum
    progress = min(step, ramp_steps) / ramp_steps
    return maximum * math.exp(-5 * (1 - progress) ** 2)
