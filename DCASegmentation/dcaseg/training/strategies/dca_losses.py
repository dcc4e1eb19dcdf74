"""The losses of DCA's training step (slide "Aggregate"), each in a separate graph (default) or all in one graph.

In the paper, the experts learn from labeled patches only, and the aggregation decoder passes no gradient to them. So
the experts' pass over unlabeled patches needs no graph, and labeled and unlabeled patches can have separate backward
passes: the memory of one is freed before the other begins. For the same reason, experts and aggregation decoder can
learn in separate stages (see ``Stage``).

``compute_joint_losses`` computes all losses in one graph. Except for batch statistics and strong views, they are equal.
The option ``joint_statistics`` trains with it, and ``dca benchmark training`` compares the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...method.experts import DecoderOutput
from ...method.losses import segmentation_loss
from ...method.network import LEVELS, DCANet
from ...method.stitching import split_labels
from ..options import TrainingOptions

GROUPS = ("head", "medium", "tail")

# What learns in a step: encoder and experts, only the aggregation decoder, or everything (the paper).
Stage = Literal["experts", "aggregation", "joint"]


def compute_supervised_losses(
    network: DCANet,
    volumes: Tensor,
    labels: Tensor,
    options: TrainingOptions,
    stage: Stage = "joint",
    class_balance: float = 0.0,
    unannotated: Sequence[Sequence[int]] = (),
) -> dict[str, Tensor]:
    """The losses on labeled patches, by name; their sum is minimized.

    ``volumes`` are (batch, 1, depth, height, width), ``labels`` integers (batch, depth, height, width). There is one
    loss for each expert, with its split labels, and with the option ``supervise_aggregation`` the loss ``aggregation``,
    with all labels, and ``attention`` (see ``attention_loss``; a fusion without attention has none); but only the
    losses of what learns in this ``stage``. ``class_balance``: see
    ``method.losses.segmentation_loss``. ``unannotated``: for each patch, the labels that its label map does not
    include.
    """
    missing = make_channel_mask(unannotated, network.out_channels, volumes.device) if any(unannotated) else None
    with torch.set_grad_enabled(stage != "aggregation"):
        encoded = network.encoder(volumes)
        decoded = network.decode_experts(encoded)
    losses = {}
    if stage != "aggregation":
        for slot, owned, expert in zip(network.expert_slots, network.owners, decoded, strict=True):
            target = split_labels(labels, owned)
            # The other experts' organs are background for this expert, whether they are annotated or not.
            own_missing = (
                None if missing is None else missing & make_channel_mask([owned], network.out_channels, volumes.device)
            )
            losses[GROUPS[slot]] = segmentation_loss(
                expert.logits.float(), target, options.dice_channels, owned, class_balance, own_missing
            )
    if stage != "experts" and network.aggregation is not None and options.supervise_aggregation:
        detached = [_detach(expert) for expert in decoded]
        logits, attention = network.aggregate(encoded, detached, _get_supervised_levels(network, options))
        organs = range(1, network.out_channels)
        losses["aggregation"] = segmentation_loss(
            logits.float(), labels, options.dice_channels, organs, class_balance, missing
        )
        if attention:
            losses["attention"] = options.attention_weight * attention_loss(attention, labels, network.owners)
    return losses


def attention_loss(attention: Mapping[int, Tensor], labels: Tensor, owners: Sequence[Sequence[int]]) -> Tensor:
    """Cross-entropy between DFAM's attention and the expert that owns each voxel's organ, as a scalar tensor.

    The paper leaves the attention free. Then an expert can have most of the attention in another expert's organs, and
    a map of the dominant expert does not show who is responsible for a voxel. Background voxels do not count. Each
    expert has the same weight, however small its organs are; experts without organs in the patch have none.

    ``attention`` maps levels to (batch, expert, depth, height, width) at their resolution, as in
    ``method.network.DCAOutput``; ``labels`` are integers (batch, depth, height, width) at full resolution; ``owners``
    are the labels of each expert. Returns 0 if no patch contains an organ.
    """
    owner_of = torch.full((1 + sum(len(owned) for owned in owners),), -1, device=labels.device)
    for expert, owned in enumerate(owners):
        owner_of[list(owned)] = expert
    total = next(iter(attention.values())).new_zeros((), dtype=torch.float32)
    for weights in attention.values():
        step = labels.shape[-1] // weights.shape[-1]
        owner = owner_of[labels[:, ::step, ::step, ::step].long()]
        log_attention = weights.float().clamp(min=1e-6).log()
        own_voxels = [owner == expert for expert in range(len(owners))]
        means = [-log_attention[:, expert][own].mean() for expert, own in enumerate(own_voxels) if own.any()]
        if means:
            total = total + torch.stack(means).mean() / len(attention)
    return total


class PseudoLabels(NamedTuple):
    """``labels`` are integers (batch, depth, height, width). ``ignored`` is true for uncertain voxels; None: none."""

    labels: Tensor
    ignored: Tensor | None


@torch.no_grad()
def compute_pseudo_labels(logits: Tensor, confidence: float) -> PseudoLabels:
    """Pseudo-labels, the most probable labels, from a teacher's ``logits`` (batch, channel, depth, height, width).

    Voxels in which that label has a softmax probability below ``confidence`` are ignored.
    """
    if confidence <= 0:
        return PseudoLabels(logits.argmax(dim=1), None)
    highest, labels = logits.float().softmax(dim=1).max(dim=1)
    return PseudoLabels(labels, highest < confidence)


@torch.no_grad()
def compute_stitched_pseudo_labels(teacher: DCANet, volumes: Tensor, confidence: float = 0.0) -> PseudoLabels:
    """Pseudo-labels of the stitched experts of ``teacher`` for ``volumes`` (batch, 1, depth, height, width)."""
    decoded = teacher.decode_experts(teacher.encoder(volumes))
    return compute_pseudo_labels(teacher.stitch([expert.logits for expert in decoded]), confidence)


def pseudo_supervised_loss(
    network: DCANet,
    teacher: DCANet,
    volumes: Tensor,
    options: TrainingOptions,
    class_balance: float = 0.0,
    view: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The experts' loss on unlabeled patches, and the fraction of voxels where they agree with the teacher.

    The ``teacher`` (the network with averaged weights) creates stitched pseudo-labels for ``volumes`` (batch, 1, depth,
    height, width), and each expert learns its split of them, as with true labels, from ``view`` (same shape; None: from
    the volumes). The encoder learns, too. In the paper, the experts see labeled cases only.
    """
    pseudo_labels, ignored = compute_stitched_pseudo_labels(teacher, volumes, options.pseudo_label_confidence)
    decoded = network.decode_experts(network.encoder(volumes if view is None else view))
    losses = [
        segmentation_loss(
            expert.logits.float(), split_labels(pseudo_labels, owned), options.dice_channels, owned, class_balance,
            ignored=ignored,
        )
        for owned, expert in zip(network.owners, decoded, strict=True)
    ]  # fmt: skip
    with torch.no_grad():
        predicted = network.stitch([expert.logits for expert in decoded]).argmax(dim=1)
        agreement = (predicted == pseudo_labels).float().mean()
    return torch.stack(losses).sum(), agreement


def unsupervised_loss(
    network: DCANet,
    volumes: Tensor,
    options: TrainingOptions,
    stage: Stage = "joint",
    view: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """L_un on unlabeled patches, and the fraction of voxels where the aggregation decoder agrees with the pseudo-label.

    The pseudo-label of ``volumes`` (batch, 1, depth, height, width) is that of the stitched experts or, with the option
    ``pseudo_label_source`` "decoder", that of the aggregation decoder itself. The aggregation decoder and, in the
    ``joint`` stage, the encoder learn it from ``view`` (same shape; None: from the volumes). Voxels below the option
    ``pseudo_label_confidence`` are ignored in the segmentation loss, but not in ``attention_loss``. Raises ValueError
    without an aggregation decoder.
    """
    if network.aggregation is None:
        raise ValueError("a network without an aggregation decoder has no unsupervised loss")
    with torch.set_grad_enabled(stage == "joint" and view is None):
        encoded = network.encoder(volumes)
    with torch.no_grad():
        decoded = network.decode_experts([feature.detach() for feature in encoded])
        if options.pseudo_label_source == "decoder":
            target, _ = network.aggregate([feature.detach() for feature in encoded], decoded)
        else:
            target = network.stitch([expert.logits for expert in decoded])
    pseudo_labels, ignored = compute_pseudo_labels(target, options.pseudo_label_confidence)
    if view is not None:
        with torch.set_grad_enabled(stage == "joint"):
            encoded = network.encoder(view)
        with torch.no_grad():
            decoded = network.decode_experts([feature.detach() for feature in encoded])
    logits, attention = network.aggregate(encoded, decoded, _get_supervised_levels(network, options))
    organs = range(1, network.out_channels)
    loss = segmentation_loss(logits.float(), pseudo_labels, options.dice_channels, organs, ignored=ignored)
    if attention:
        loss = loss + options.attention_weight * attention_loss(attention, pseudo_labels, network.owners)
    with torch.no_grad():
        agreement = (logits.argmax(dim=1) == pseudo_labels).float().mean()
    return loss, agreement


def make_channel_mask(labels: Sequence[Sequence[int]], n_channels: int, device: torch.device) -> Tensor:
    """Booleans (batch, channel), true for the ``labels`` of each case."""
    mask = torch.zeros(len(labels), n_channels, dtype=torch.bool, device=device)
    for row, channels in zip(mask, labels, strict=True):
        row[list(channels)] = True
    return mask


def _get_supervised_levels(network: DCANet, options: TrainingOptions) -> Sequence[int]:
    """The levels whose attention learns from ``attention_loss``."""
    return LEVELS if options.attention_weight and network.options["fusion"] == "dfam" else ()


def _detach(decoded: DecoderOutput) -> DecoderOutput:
    return DecoderOutput([feature.detach() for feature in decoded.features], decoded.logits.detach())


def compute_joint_losses(
    network: DCANet,
    volumes: Tensor,
    labels: Tensor,
    unlabeled: Tensor,
    options: TrainingOptions,
    class_balance: float = 0.0,
    unannotated: Sequence[Sequence[int]] = (),
    aggregate_all: bool = True,
) -> tuple[dict[str, Tensor], Tensor]:
    """All losses of a step in one graph, by name, and the agreement of the aggregation decoder with the pseudo-label.

    The losses are those of the experts, ``aggregation`` and ``attention`` (with the option ``supervise_aggregation``),
    and ``unsupervised``. With ``aggregate_all``, the aggregation decoder processes the labeled patches even if it does
    not learn from their labels. ``volumes`` and ``unlabeled`` are (batch, 1, depth, height, width); other arguments
    are as in ``compute_supervised_losses``. Raises ValueError without an aggregation decoder.
    """
    if network.aggregation is None:
        raise ValueError("a network without an aggregation decoder cannot compute all losses in one graph")
    count, n_channels = len(volumes), network.out_channels
    missing = make_channel_mask(unannotated, n_channels, volumes.device) if any(unannotated) else None
    encoded = network.encoder(torch.cat([volumes, unlabeled]))
    decoded = network.decode_experts(encoded)
    losses = {}
    for slot, owned, expert in zip(network.expert_slots, network.owners, decoded, strict=True):
        own_missing = None if missing is None else missing & make_channel_mask([owned], n_channels, volumes.device)
        losses[GROUPS[slot]] = segmentation_loss(
            expert.logits[:count].float(), split_labels(labels, owned), options.dice_channels, owned, class_balance,
            own_missing,
        )  # fmt: skip
    first = 0 if options.supervise_aggregation or aggregate_all else count
    aggregated, attention = network.aggregate(
        [level[first:] for level in encoded],
        [
            DecoderOutput([level[first:].detach() for level in expert.features], expert.logits[first:].detach())
            for expert in decoded
        ],
        _get_supervised_levels(network, options),
    )
    organs = range(1, n_channels)
    if options.supervise_aggregation:
        losses["aggregation"] = segmentation_loss(
            aggregated[:count].float(), labels, options.dice_channels, organs, class_balance, missing
        )
        if attention:
            of_labeled = {level: weights[:count] for level, weights in attention.items()}
            losses["attention"] = options.attention_weight * attention_loss(of_labeled, labels, network.owners)
    logits = aggregated[count - first :]
    if options.pseudo_label_source == "decoder":
        target = logits.detach()
    else:
        target = network.stitch([expert.logits[count:].detach() for expert in decoded])
    pseudo_labels, ignored = compute_pseudo_labels(target, options.pseudo_label_confidence)
    losses["unsupervised"] = segmentation_loss(
        logits.float(), pseudo_labels, options.dice_channels, organs, ignored=ignored
    )
    if attention:
        of_unlabeled = {level: weights[count - first :] for level, weights in attention.items()}
        unsupervised_attention = attention_loss(of_unlabeled, pseudo_labels, network.owners)
        losses["unsupervised"] = losses["unsupervised"] + options.attention_weight * unsupervised_attention
    agreement = (logits.detach().argmax(dim=1) == pseudo_labels).float().mean()
    return losses, agreement
