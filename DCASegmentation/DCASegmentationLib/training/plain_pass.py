"""A step of DCA as one reads it first: all patches through all decoders, in one graph.

What ``dca_step`` computes in parts must have these losses; ``dca benchmark`` measures what the parts save.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.label_split import split_labels
from ..method.network import DCANet
from ..method.objective import segmentation_loss
from .dca_step import GROUPS
from .options import TrainingOptions


def plain_losses(
    network: DCANet, volumes: Tensor, labels: Tensor, unlabelled: Tensor, options: TrainingOptions
) -> dict[str, Tensor]:
    """The losses of a step by name, all of one graph: those of the experts, ``aggregation`` where true labels teach
    it, and ``unsupervised``. Shapes as in ``dca_step``."""
    if network.aggregation is None:
        raise ValueError("a network without aggregation decoder has no plain pass")
    count = len(volumes)
    encoded = network.encoder(torch.cat([volumes, unlabelled]))
    decoded = network.decode_experts(encoded)
    aggregated, _ = network.aggregation(encoded, [[level.detach() for level in one.features] for one in decoded])
    organs = range(1, network.out_channels)
    losses = {
        GROUPS[slot]: segmentation_loss(
            expert.logits[:count], split_labels(labels, owned), options.dice_channels, owned
        )
        for slot, owned, expert in zip(network.expert_slots, network.owners, decoded, strict=True)
    }
    if options.supervise_aggregation:
        losses["aggregation"] = segmentation_loss(aggregated[:count], labels, options.dice_channels, organs)
    pseudo_labels = network.stitch([expert.logits[count:].detach() for expert in decoded]).argmax(dim=1)
    losses["unsupervised"] = segmentation_loss(aggregated[count:], pseudo_labels, options.dice_channels, organs)
    return losses
