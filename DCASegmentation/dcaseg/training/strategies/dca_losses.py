"""The losses of one training step of DCA (section "Aggregate"): each part in a graph of its own, or all in one.

In the paper the experts learn from labelled patches alone, and the aggregation decoder hands no gradient to them. So
the experts' pass over unlabelled patches needs no graph, and the two passes are two backward calls: the memory of one
is free before the other begins. For the same reason the decoders may learn one after the other (see ``Stage``).

What ``dca_step`` computes in parts has these losses, batch statistics aside. ``dca benchmark training`` measures what
the parts save, and the option ``joint_statistics`` trains this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...method.experts import DecoderOutput
from ...method.losses import segmentation_loss
from ...method.network import DCANet
from ...method.stitching import split_labels
from ..options import TrainingOptions

GROUPS = ("head", "medium", "tail")

# Who learns in a step: encoder and experts, the aggregation decoder on what they have become, or all (the paper).
Stage = Literal["experts", "aggregation", "joint"]


def supervised_losses(
    network: DCANet,
    volumes: Tensor,
    labels: Tensor,
    options: TrainingOptions,
    stage: Stage = "joint",
    class_balance: float = 0.0,
    unannotated: Sequence[Sequence[int]] = (),
) -> dict[str, Tensor]:
    """The losses on labelled patches, by name; their sum is to be minimized.

    ``volumes`` are (batch, 1, depth, height, width), ``labels`` integers (batch, depth, height, width). One loss for
    each expert on its split labels, and ``aggregation`` on the whole labels where the options ask for it; of these,
    the losses of those who learn in the ``stage``. ``class_balance`` is that of
    ``method.losses.segmentation_loss``, ``unannotated`` the labels of each patch that its label map does not tell of.
    """
    hidden = channels_of(unannotated, network.out_channels, volumes.device) if any(unannotated) else None
    with torch.set_grad_enabled(stage != "aggregation"):
        encoded = network.encoder(volumes)
        decoded = network.decode_experts(encoded)
    losses = {}
    if stage != "aggregation":
        for slot, owned, expert in zip(network.expert_slots, network.owners, decoded, strict=True):
            target = split_labels(labels, owned)
            # What others own is background to this expert, whether the map tells of it or not.
            of_owned = None if hidden is None else hidden & channels_of([owned], network.out_channels, volumes.device)
            losses[GROUPS[slot]] = segmentation_loss(
                expert.logits.float(), target, options.dice_channels, owned, class_balance, of_owned
            )
    if stage != "experts" and network.aggregation is not None and options.supervise_aggregation:
        logits, _ = network.aggregate(encoded, [_detached(expert) for expert in decoded])
        organs = range(1, network.out_channels)
        losses["aggregation"] = segmentation_loss(
            logits.float(), labels, options.dice_channels, organs, class_balance, hidden
        )
    return losses


@torch.no_grad()
def stitched_pseudo_labels(teacher: DCANet, volumes: Tensor) -> Tensor:
    """The stitched experts' labels (batch, depth, height, width) of ``volumes``, the paper's pseudo-label."""
    decoded = teacher.decode_experts(teacher.encoder(volumes))
    return teacher.stitch([expert.logits for expert in decoded]).argmax(dim=1)


def pseudo_supervised_loss(
    network: DCANet, teacher: DCANet, volumes: Tensor, options: TrainingOptions
) -> tuple[Tensor, Tensor]:
    """What the experts learn from unlabelled patches, and the share of voxels where they agree with the teacher.

    ``teacher`` (the network with averaged weights) stitches the pseudo-label, and each expert learns its own split of
    it, as it does of true labels. The encoder learns, too. Not in the paper, whose experts see labelled cases only.
    """
    pseudo_labels = stitched_pseudo_labels(teacher, volumes)
    decoded = network.decode_experts(network.encoder(volumes))
    losses = [
        segmentation_loss(expert.logits.float(), split_labels(pseudo_labels, owned), options.dice_channels, owned)
        for owned, expert in zip(network.owners, decoded, strict=True)
    ]
    with torch.no_grad():
        found = network.stitch([expert.logits for expert in decoded]).argmax(dim=1)
        agreement = (found == pseudo_labels).float().mean()
    return torch.stack(losses).sum(), agreement


def unsupervised_loss(
    network: DCANet, volumes: Tensor, options: TrainingOptions, stage: Stage = "joint"
) -> tuple[Tensor, Tensor]:
    """L_un on unlabelled patches, and the share of voxels where the aggregation agrees with the pseudo-label.

    The experts stitch the pseudo-label; the loss teaches the aggregation decoder and, in the ``joint`` stage, the
    encoder.
    """
    if network.aggregation is None:
        raise ValueError("a network without aggregation decoder has no unsupervised loss")
    with torch.set_grad_enabled(stage == "joint"):
        encoded = network.encoder(volumes)
    with torch.no_grad():
        decoded = network.decode_experts([feature.detach() for feature in encoded])
        pseudo_labels = network.stitch([expert.logits for expert in decoded]).argmax(dim=1)
    logits, _ = network.aggregate(encoded, decoded)
    loss = segmentation_loss(logits.float(), pseudo_labels, options.dice_channels, range(1, network.out_channels))
    with torch.no_grad():
        agreement = (logits.argmax(dim=1) == pseudo_labels).float().mean()
    return loss, agreement


def channels_of(labels: Sequence[Sequence[int]], n_channels: int, device: torch.device) -> Tensor:
    """Booleans (batch, channel): true where the case's ``labels`` are."""
    mask = torch.zeros(len(labels), n_channels, dtype=torch.bool, device=device)
    for row, channels in zip(mask, labels, strict=True):
        row[list(channels)] = True
    return mask


def _detached(decoded: DecoderOutput) -> DecoderOutput:
    return DecoderOutput([feature.detach() for feature in decoded.features], decoded.logits.detach())


def plain_losses(
    network: DCANet,
    volumes: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    options: TrainingOptions,
    class_balance: float = 0.0,
    unannotated: Sequence[Sequence[int]] = (),
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
    hidden = channels_of(unannotated, n_channels, volumes.device) if any(unannotated) else None
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
        [
            DecoderOutput([level[first:].detach() for level in one.features], one.logits[first:].detach())
            for one in decoded
        ],
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
