"""Losses that several methods share. Their first argument is the prediction, the second the target.

Logits and probabilities are (batch, channel, depth, height, width), labels int64 (batch, depth, height, width); channel
0 is the background. All losses are computed in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...method.losses import segmentation_loss
from ..options import TrainingOptions
from .base import StepState, compute_class_balance

_SMALL = 1e-10


def supervised_loss(
    logits: Tensor,
    labels: Tensor,
    options: TrainingOptions,
    step_state: StepState,
    published: Callable[..., Tensor],
    region: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The loss of a comparison method on true labels, or on mixtures of true labels and pseudo-labels.

    With the option ``class_balance``, as in our presets, it is the run's segmentation loss, that of V-Net and DCA, so
    that tables compare methods and not their supervised losses. Without it, as in the paper's preset, it is the
    method's own, ``published(logits, labels)``.

    ``region`` (boolean, broadcast to the labels) restricts both losses to a part of the voxels; it is the third
    argument of ``published``. ``scale`` multiplies the run's loss, so that it keeps its published proportion to the
    unsupervised loss: 2 if the method adds cross-entropy and Dice loss, of which the run's loss is the mean.
    """
    if options.class_balance <= 0:
        return published(logits, labels) if region is None else published(logits, labels, region)
    organs, balance = range(1, logits.shape[1]), compute_class_balance(step_state, options)
    ignored = None if region is None else ~region.expand_as(labels)
    return scale * segmentation_loss(logits.float(), labels, options.dice_channels, organs, balance, ignored=ignored)


def voxel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each voxel (batch, depth, height, width)."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def voxel_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    over: Literal["all", "kept"] = "all",
) -> Tensor:
    """The mean of weight x mask x cross-entropy.

    ``weights`` (channel,) are those of the labels; ``mask`` is (batch, depth, height, width). The mean is over ``all``
    voxels or over those that the mask has ``kept``.
    """
    loss = voxel_cross_entropy(logits, labels)
    if weights is not None:
        loss = loss * weights[labels]
    if mask is None:
        return loss.mean()
    mask = mask.to(loss.dtype)
    return (loss * mask).sum() / (mask.sum().clamp(min=1) if over == "kept" else loss.numel())


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean cross-entropy, weighted by the label of each voxel (``weights`` (channel,)); 0 if all weights are 0."""
    of_voxel = weights[labels]
    return (of_voxel * voxel_cross_entropy(logits, labels)).sum() / of_voxel.sum().clamp(min=_SMALL)


def foreground_dice_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """The soft Dice loss of DHC and related methods: minus the weighted mean Dice of the organs over the whole batch.

    -mean_k w_k (2 Σ p y + 1) / (Σ p + Σ y + 1), without the background; it ranges from -max w to 0. ``weights`` are
    (channel,). With ``mask`` (batch, depth, height, width), the sums are over its voxels.
    """
    probabilities = logits.float().softmax(dim=1)
    overlap, predicted, true = _compute_sums(probabilities, labels, mask)
    dice = (2 * overlap + 1) / (predicted + true + 1)
    return -(dice if weights is None else weights * dice)[1:].mean()


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """``weighted_cross_entropy`` + ``foreground_dice_loss``, both with the same ``weights`` (channel,)."""
    return weighted_cross_entropy(logits, labels, weights) + foreground_dice_loss(logits, labels, weights)


def unweighted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``weighted_loss`` with weights of 1: mean cross-entropy + ``foreground_dice_loss``."""
    return voxel_loss(logits, labels) + foreground_dice_loss(logits, labels)


def squared_dice_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """1 - mean Dice, with squared sums in the denominator, of the whole batch, including the background."""
    probabilities = probabilities.float()
    overlap, _, true = _compute_sums(probabilities, labels)
    squares = (probabilities**2).sum(dim=(0, 2, 3, 4))
    return (1 - (2 * overlap + _SMALL) / (squares + true + _SMALL)).mean()


def cross_entropy_and_square_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """(cross-entropy + ``squared_dice_loss``) / 2."""
    return (
        functional.cross_entropy(logits.float(), labels) + squared_dice_loss(logits.float().softmax(dim=1), labels)
    ) / 2


def soft_dice_loss(one: Tensor, other: Tensor) -> Tensor:
    """1 - mean Dice between two probability maps, with squared sums in the denominator, of the whole batch."""
    one, other = one.float(), other.float()
    axes = (0, 2, 3, 4)
    overlap = (one * other).sum(dim=axes)
    return (1 - (2 * overlap + _SMALL) / ((one**2).sum(dim=axes) + (other**2).sum(dim=axes) + _SMALL)).mean()


def region_loss(logits: Tensor, labels: Tensor, region: Tensor) -> Tensor:
    """(Dice loss + cross-entropy) / 2 inside of ``region`` (boolean, broadcast to the labels) only.

    Dice is per case, without squares and with the background, as in ``method.losses.segmentation_loss``. The loss of an
    empty region is 0.
    """
    return segmentation_loss(logits.float(), labels, "all", ignored=~region.expand_as(labels))


def sample_mask(labels: Tensor, rates: Tensor, generator: torch.Generator) -> Tensor:
    """A random mask of the shape of ``labels``: voxels of label k are kept with probability ``rates[k]``."""
    return torch.rand(labels.shape, generator=generator).to(labels.device) < rates[labels]


def compute_agreement(one: Tensor, other: Tensor) -> Tensor:
    """The fraction of voxels with the same label, for the log."""
    return (one == other).float().mean()


def _compute_sums(probabilities: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Σ p y, Σ p and Σ y of each channel over the whole batch. Indexing replaces a one-hot target."""
    zeros = probabilities.new_zeros(probabilities.shape[1])
    of_truth = probabilities.gather(1, labels[:, None])[:, 0]
    ones = torch.ones_like(of_truth)
    if mask is not None:
        inside = mask.to(of_truth.dtype)
        of_truth, ones, probabilities = of_truth * inside, inside, probabilities * inside[:, None]
    truth = labels.flatten()
    overlap = zeros.scatter_add(0, truth, of_truth.flatten())
    true = zeros.scatter_add(0, truth, ones.flatten())
    return overlap, probabilities.sum(dim=(0, 2, 3, 4)), true
