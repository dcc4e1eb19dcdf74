"""What labelled patches teach a network with one decoder, or several that all see the whole labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...method.objective import segmentation_loss
from ..dca_step import channels_of
from ..options import TrainingOptions
from .strategy import Batch, Moment


def class_balance(moment: Moment, options: TrainingOptions) -> float:
    """How much small organs are weighed up, falling to nothing over the run; see ``segmentation_loss``."""
    return options.class_balance * (1 - moment.within / moment.length)


def whole_label_loss(logits: Tensor, batch: Batch, options: TrainingOptions, moment: Moment) -> Tensor:
    """L_seg of ``logits`` (batch, channel, depth, height, width) on the whole label maps of a batch."""
    n_channels = logits.shape[1]
    hidden = channels_of(batch.unknown, n_channels, logits.device) if any(batch.unknown) else None
    balance = class_balance(moment, options)
    return segmentation_loss(logits.float(), batch.labels, options.dice_channels, range(1, n_channels), balance, hidden)


def pseudo_label_loss(logits: Tensor, pseudo_labels: Tensor, options: TrainingOptions) -> Tensor:
    """L_seg of ``logits`` on labels (batch, depth, height, width) that a network has made."""
    organs: Sequence[int] = range(1, logits.shape[1])
    return segmentation_loss(logits.float(), pseudo_labels, options.dice_channels, organs)
