"""The paper's segmentation loss L_seg, and the ramp-up of the weight of its unsupervised term."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from .variants import DiceChannels

_SMOOTH = 1e-5


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    dice_channels: DiceChannels = "all",
    owned: Iterable[int] = (),
    class_balance: float = 0.0,
    unannotated: Tensor | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """The paper's L_seg = (Dice loss + cross-entropy) / 2, as a scalar tensor.

    ``logits`` are (batch, channel, depth, height, width), ``labels`` integers (batch, depth, height, width).

    ``dice_channels`` chooses the channels of the soft Dice loss, which is computed per case and averaged over channels
    and cases. ``all`` is the literal reading of the paper. After a label split most channels are empty in a patch, and
    each keeps its Dice loss near one until its probability vanishes; so ``owned`` uses the background and the labels
    in ``owned`` only, and ``present`` the channels that occur in the case's labels.

    ``class_balance`` weights each voxel's cross-entropy by (voxels / voxels of its class) to this power: 0 is the
    paper's plain mean, and 1 gives every class present the same total weight. Without it, a class of a few dozen voxels
    has almost no gradient once its softmax probability is near zero. Dice does not help: its gradient passes through
    the same softmax.

    ``unannotated`` (batch, channel), boolean, marks the organs that the label map of a partially labeled case does not
    include. Such an organ may be anywhere in the case's background, so its probability counts as background, and it
    has no Dice term.

    ``ignored`` (batch, depth, height, width), boolean, marks voxels without a label, which count in neither term.

    Raises ValueError for an unknown ``dice_channels``.
    """
    labels = labels.long()
    n_channels = logits.shape[1]
    if unannotated is not None:
        logits = _merge_into_background(logits, unannotated)
    # Both terms share one log-softmax, and indexing replaces a one-hot target: both are expensive on whole volumes.
    log_probabilities = functional.log_softmax(logits, dim=1)
    of_truth = log_probabilities.gather(1, labels[:, None])[:, 0]
    truth = labels.flatten(1)
    zeros = logits.new_zeros(len(logits), n_channels)
    probabilities, correct = log_probabilities.exp(), of_truth.exp()
    counted = torch.ones_like(of_truth)
    if ignored is not None:
        counted = counted.masked_fill(ignored, 0)
        probabilities, correct, of_truth = probabilities * counted[:, None], correct * counted, of_truth * counted
    overlap = zeros.scatter_add(1, truth, correct.flatten(1))
    sizes = zeros.scatter_add(1, truth, counted.flatten(1))
    total = probabilities.sum(dim=(2, 3, 4)) + sizes
    dice = 1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)
    cross_entropy = -of_truth.sum() / counted.sum().clamp(min=1)
    if class_balance > 0:
        voxels = sizes.sum(dim=0)
        weights = counted * (voxels.sum() / voxels.clamp(min=1)).pow(class_balance)[labels]
        cross_entropy = -(weights * of_truth).sum() / weights.sum().clamp(min=1)
    chosen = _select_dice_channels(dice_channels, sizes, owned)
    if unannotated is not None:
        chosen &= ~unannotated
    # If all voxels of the batch are ignored, no channel is present.
    dice_loss = dice[chosen].mean() if chosen.any() else dice.sum() * 0
    return (dice_loss + cross_entropy) / 2


def _merge_into_background(logits: Tensor, unannotated: Tensor) -> Tensor:
    """Logits whose softmax moves the probability of the ``unannotated`` channels to channel 0."""
    excluded = unannotated[:, :, None, None, None]
    merged = excluded.clone()
    merged[:, 0] = True
    background = logits.masked_fill(~merged, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(excluded[:, 1:], -math.inf)], dim=1)


def _select_dice_channels(dice_channels: DiceChannels, sizes: Tensor, owned: Iterable[int]) -> Tensor:
    """Which channels have a Dice term, as booleans (batch, channel); ``sizes`` (batch, channel) are in voxels."""
    if dice_channels == "all":
        return torch.ones_like(sizes, dtype=torch.bool)
    if dice_channels == "owned":
        chosen = torch.zeros_like(sizes, dtype=torch.bool)
        chosen[:, [0, *owned]] = True
        return chosen
    if dice_channels == "present":
        return sizes > 0
    raise ValueError(f"dice_channels must be 'all', 'owned' or 'present', not {dice_channels!r}")


def compute_sigmoid_rampup(step: int, ramp_steps: int, maximum: float = 10.0) -> float:
    """The weight lambda of the unsupervised loss: ``maximum * exp(-5 (1 - t/T)^2)`` up to T, then ``maximum``.

    ``step`` (t) counts iterations from 0. A ramp of 0 steps (T = ``ramp_steps``) starts at the maximum.
    """
    if ramp_steps <= 0:
        return maximum
    progress = min(step, ramp_steps) / ramp_steps
    return maximum * math.exp(-5 * (1 - progress) ** 2)
