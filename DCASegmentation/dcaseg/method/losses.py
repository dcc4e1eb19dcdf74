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
    logits: Tensor,
    labels: Tensor,
    dice_channels: DiceChannels = "all",
    owned: Iterable[int] = (),
    class_balance: float = 0.0,
    unannotated: Tensor | None = None,
) -> Tensor:
    """L_seg = (Dice + cross-entropy) / 2.

    ``logits`` are (batch, channel, depth, height, width), ``labels`` integers (batch, depth, height, width). Dice is
    soft, per case, averaged over channels and cases. ``dice_channels`` chooses the channels: ``all`` is the literal
    reading of the paper; after a label split most channels are empty in a patch and hold the loss near one until
    their probability vanishes, so ``owned`` takes background and the ``owned`` labels, and ``present`` the channels
    that occur in the case's labels.

    ``class_balance`` weighs each voxel's cross-entropy by (voxels / voxels of its class) to this power: 0 is the
    paper's plain mean, 1 gives every class present the same say. Without it a class of a few dozen voxels hardly
    pulls at all once the softmax has given up on it, and Dice, whose gradient passes through that softmax, neither.

    ``unannotated`` are booleans (batch, channel): the organs that a case's label map does not tell of. Its background
    may be any of them, so their probability counts as background there, and they have no Dice.
    """
    labels = labels.long()
    n_channels = logits.shape[1]
    if unannotated is not None:
        logits = _unannotated_as_background(logits, unannotated)
    # One log-softmax serves both terms, and indexing stands for a one-hot target: neither is cheap on whole volumes.
    log_probabilities = functional.log_softmax(logits, dim=1)
    of_truth = log_probabilities.gather(1, labels[:, None])[:, 0]
    truth = labels.flatten(1)
    zeros = logits.new_zeros(len(logits), n_channels)
    overlap = zeros.scatter_add(1, truth, of_truth.exp().flatten(1))
    sizes = zeros.scatter_add(1, truth, torch.ones_like(truth, dtype=logits.dtype))
    total = log_probabilities.exp().sum(dim=(2, 3, 4)) + sizes
    dice = 1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)
    cross_entropy = -of_truth.mean()
    if class_balance > 0:
        voxels = sizes.sum(dim=0)
        weights = (voxels.sum() / voxels.clamp(min=1)).pow(class_balance)[labels]
        cross_entropy = -(weights * of_truth).sum() / weights.sum()
    chosen = _chosen(dice_channels, sizes, owned)
    if unannotated is not None:
        chosen &= ~unannotated
    return (dice[chosen].mean() + cross_entropy) / 2


def _unannotated_as_background(logits: Tensor, unannotated: Tensor) -> Tensor:
    """Logits whose softmax has the ``unannotated`` channels' probability in channel 0 and none in those channels."""
    hidden = unannotated[:, :, None, None, None]
    joined = hidden.clone()
    joined[:, 0] = True
    background = logits.masked_fill(~joined, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(hidden[:, 1:], -math.inf)], dim=1)


def _chosen(dice_channels: DiceChannels, sizes: Tensor, owned: Iterable[int]) -> Tensor:
    """Which channels of which case count, as booleans of the shape of ``sizes`` (batch, channel), in voxels."""
    if dice_channels == "all":
        return torch.ones_like(sizes, dtype=torch.bool)
    if dice_channels == "owned":
        chosen = torch.zeros_like(sizes, dtype=torch.bool)
        chosen[:, [0, *owned]] = True
        return chosen
    if dice_channels == "present":
        return sizes > 0
    raise ValueError(f"dice_channels must be 'all', 'owned' or 'present', not {dice_channels!r}")


def unsupervised_weight(step: int, ramp_steps: int, maximum: float = 10.0) -> float:
    """The weight lambda of the unsupervised loss: ``maximum * exp(-5 (1 - t/T)^2)``, then ``maximum``.

    ``step`` counts iterations from 0; a ramp of 0 steps starts at the maximum.
    """
    if ramp_steps <= 0:
        return maximum
    progress = min(step, ramp_steps) / ramp_steps
    return maximum * math.exp(-5 * (1 - progress) ** 2)
