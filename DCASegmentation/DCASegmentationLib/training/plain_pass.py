"""A step of DCA as one reads it first: all patches through encoder and experts together, in one graph.

What ``dca_step`` computes in parts has these losses, batch statistics aside. ``dca benchmark training`` measures what
the parts save, and the option ``joint_statistics`` trains this way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..method.experts import Decoded
from ..method.label_split import split_labels
from ..method.network import DCANet
from ..method.objective import segmentation_loss
from .dca_step import GROUPS, channels_of
from .options import TrainingOptions


def plain_losses(
    network: DCANet,
    volumes: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    options: TrainingOptions,
    class_balance: float = 0.0,
    unknown: Sequence[Sequence[int]] = (),
    aggregate_all: bool = True,
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of a step by name, all of one graph, and the share of voxels where the aggregation agrees with the
    pseudo-label. The losses are those of the experts, ``aggregation`` where true labels teach it, and ``unsupervised``.

    ``aggregate_all`` gives the aggregation decoder the labelled patches even where their labels do not teach it. The
    rest is as in ``dca_step.supervised_losses``. Raises ValueError for a network without aggregation decoder.
    """
    if network.aggregation is None:
        raise ValueError("a network without aggregation decoder has no plain pass")
    count, n_channels = len(volumes), network.out_channels
    hidden = channels_of(unknown, n_channels, volumes.device) if any(unknown) else None
    encoded = network.encoder(torch.cat([volumes, unlabelled]))
    decoded = network.decode_experts(encoded)
    losses = {}
    for slot, owned, expert in zip(network.expert_slots, network.owners, decoded, strict=True):
        of_owned = None if hidden is None else hidden & channels_of([owned], n_channels, volumes.device)
        losses[GROUPS[slot]] = segmentation_loss(
            expert.logits[:count].float(), split_labels(labels, owned), options.dice_channels, owned, class_balance,
            of_owned,
        )  # fmt: skip
    first = 0 if options.supervise_aggregation or aggregate_all else count
    aggregated, _ = network.aggregate(
        [level[first:] for level in encoded],
        [Decoded([level[first:].detach() for level in one.features], one.logits[first:].detach()) for one in decoded],
    )
    organs = range(1, n_channels)
    if options.supervise_aggregation:
        losses["aggregation"] = segmentation_loss(
            aggregated[:count].float(), labels, options.dice_channels, organs, class_balance, hidden
        )
    pseudo_labels = network.stitch([expert.logits[count:].detach() for expert in decoded]).argmax(dim=1)
    found = aggregated[count - first :]
    losses["unsupervised"] = segmentation_loss(found.float(), pseudo_labels, options.dice_channels, organs)
    agreement = (found.detach().argmax(dim=1) == pseudo_labels).float().mean()
    return losses, agreement
