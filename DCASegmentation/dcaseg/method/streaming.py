"""A forward pass with a small memory footprint: all decoders run in parallel, level by level.

``DCANet.forward_all`` keeps the features of every expert until the aggregation decoder has used them, as training
requires. Here, the experts and the aggregation decoder advance together: once the features of a level are fused, the
level's skip and the features of the level below are freed. The values equal those of ``forward_all`` up to rounding
(sums are computed in a different order). Only for inference: intermediate tensors are overwritten in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dfam import DFAM
from .ensemble import EnsembleNet, average_predictions
from .experts import ExpertDecoder
from .network import LEVELS, DCANet


class RequestedOutputs(NamedTuple):
    """Which outputs to compute: the aggregation decoder's logits, the stitched experts' logits, attention by level."""

    aggregated: bool = True
    stitched: bool = False
    attention_levels: tuple[int, ...] = ()


class StreamedOutput(NamedTuple):
    """Result of ``forward``.

    ``aggregated`` and ``stitched`` are logits (batch, channel, depth, height, width), or None if not requested.
    ``attention`` maps the requested levels to weights as in ``network.DCAOutput``.
    """

    aggregated: Tensor | None
    stitched: Tensor | None
    attention: dict[int, Tensor]


def forward(network: DCANet, volume: Tensor, requested: RequestedOutputs) -> StreamedOutput:
    """Compute the ``requested`` outputs for ``volume`` (batch, in_channels, depth, height, width), and nothing else.

    Attention depends on the experts only, so the aggregation decoder does not run unless ``aggregated`` is requested.
    In a network without an aggregation decoder, both ``aggregated`` and ``stitched`` are the stitched experts' logits.

    An ensemble's members run one after the other.

    Raises ValueError if attention is requested and the network's fusion has none.
    """
    output = _forward_one(network, volume, requested)
    if not isinstance(network, EnsembleNet):
        return output
    outputs = [output, *(_forward_one(cast(DCANet, other), volume, requested) for other in network.others)]
    aggregated, stitched = (
        average_predictions([each for each in logits if each is not None], network.mean_of) if wanted else None
        for logits, wanted in (
            ([each.aggregated for each in outputs], requested.aggregated),
            ([each.stitched for each in outputs], requested.stitched),
        )
    )
    return StreamedOutput(aggregated, stitched, {})


def _forward_one(network: DCANet, volume: Tensor, requested: RequestedOutputs) -> StreamedOutput:
    decoder = network.aggregation
    if requested.attention_levels and (decoder is None or network.options["fusion"] not in ("dfam", "average")):
        raise ValueError("this network has no attention")
    experts = cast("list[ExpertDecoder]", list(network.experts))
    aggregates = requested.aggregated and decoder is not None
    adds_stitched = aggregates and network.residual
    skips = network.encode(volume)
    stream = skips.pop()
    features = [stream] * len(experts)
    attention: dict[int, Tensor] = {}
    for index, level in enumerate(LEVELS):
        skip = skips.pop()
        for position, expert in enumerate(experts):
            # No variable for the upsampled features: it would keep them alive while the block runs.
            features[position] = _run_layers(expert.blocks[index], expert.ups[index](features[position]).add_(skip))
        if aggregates and decoder is not None:
            stream = decoder.ups[index](stream).add_(skip)
        del skip
        if decoder is not None and (aggregates or level in requested.attention_levels):
            fuse = decoder.fusions[index]
            weights = _compute_attention(fuse, features)
            if weights is not None and level in requested.attention_levels:
                attention[level] = weights
            if aggregates:
                stream = _run_layers(decoder.blocks[index], _fuse(fuse, features, stream, weights))
            del weights
    stitched = None
    if requested.stitched or adds_stitched or (requested.aggregated and decoder is None):
        stitched = _stitch(network, features)
    del features
    if decoder is None:
        return StreamedOutput(stitched if requested.aggregated else None, stitched if requested.stitched else None, {})
    aggregated = decoder.head(stream) if aggregates else None
    if adds_stitched and aggregated is not None and stitched is not None:
        aggregated.add_(stitched)
    return StreamedOutput(aggregated, stitched if requested.stitched else None, attention)


def _run_layers(block: nn.Module, features: Tensor) -> Tensor:
    # A call of the whole block would keep its input alive until the last layer has run.
    for layer in block.children():
        features = layer(features)
    return features


def _compute_attention(fuse: nn.Module, features: Sequence[Tensor]) -> Tensor | None:
    """The experts' weights at one level (batch, expert, depth, height, width); None for a fusion without weights."""
    if not isinstance(fuse, DFAM):
        fused: Tensor | None = fuse(features, torch.zeros_like(features[0])).attention
        return fused
    # The convolution of the concatenated experts is the sum of one convolution per expert. Each of these absorbs the
    # preceding 1x1x1 convolution.
    kernels = fuse.mix.weight.split(features[0].shape[1], dim=1)
    unify = cast("list[nn.Conv3d]", list(fuse.unify))
    mixed: Tensor | None = None
    for expert_features, pointwise, kernel in zip(features, unify, kernels, strict=True):
        combined = torch.einsum("omzyx,mi->oizyx", kernel, pointwise.weight[:, :, 0, 0, 0])
        term = functional.conv3d(expert_features, combined, fuse.mix.bias if mixed is None else None, padding=1)
        mixed = term if mixed is None else mixed.add_(term)
        del term
    assert mixed is not None
    # The biases of the 1x1x1 convolutions count inside the volume, but not in the zero padding around it; a convolution
    # of ones gives exactly that. The ones are derived from the features, because a model converter would fold constant
    # ones and store the result as a whole volume.
    ones = features[0][:1, :1].clamp(1, 1)
    biases = [torch.einsum("omzyx,m->ozyx", kernel, layer.bias) for layer, kernel in zip(unify, kernels, strict=True)]
    mixed.add_(functional.conv3d(ones, torch.stack(biases).sum(dim=0)[:, None], padding=1))
    return torch.softmax(fuse.gate(mixed.relu_()), dim=1)


def _fuse(fuse: nn.Module, features: Sequence[Tensor], stream: Tensor, weights: Tensor | None) -> Tensor:
    """The fused features of one level; overwrites ``stream``."""
    if not isinstance(fuse, DFAM) or weights is None:
        fused: Tensor = fuse(features, stream).features
        return fused
    for position, expert_features in enumerate(features):
        stream = stream.addcmul_(weights[:, position : position + 1], expert_features)
    return stream


def _stitch(network: DCANet, features: list[Tensor]) -> Tensor:
    """The stitched logits. Of each expert's head, only the background and the channels it owns are computed.

    It empties ``features``, so that each expert's features are freed once they were used.
    """
    experts = cast("list[ExpertDecoder]", list(network.experts))
    if network.stitching == "log_softmax":
        # The softmax needs all channels.
        return network.stitch([expert.head(last) for expert, last in zip(experts, features, strict=True)])
    # The other modes are linear, so the stitched logits are a sum of one 1x1x1 convolution per expert.
    stitched: Tensor | None = None
    for expert, owned in zip(experts, network.owners, strict=True):
        weight = _build_stitching_parameter(expert.head.weight, owned, network)
        bias = None if expert.head.bias is None else _build_stitching_parameter(expert.head.bias, owned, network)
        term = functional.conv3d(features.pop(0), weight, bias)
        stitched = term if stitched is None else stitched.add_(term)
        del term
    assert stitched is not None
    return stitched


def _build_stitching_parameter(parameter: Tensor, owned: Sequence[int], network: DCANet) -> Tensor:
    """An expert's share in the stitched logits: its head's weight or bias, with zeros for the labels of the others."""
    if network.stitching == "average":
        return parameter / len(network.owners)
    relative = network.stitching == "background_relative"
    none = torch.zeros_like(parameter[0])
    background = none if relative else parameter[0] / len(network.owners)
    # Indexing with a list would create a CPU tensor, which a CUDA graph cannot capture.
    foreground = [
        (parameter[label] - parameter[0] if relative else parameter[label]) if label in owned else none
        for label in range(1, network.out_channels)
    ]
    return torch.stack([background, *foreground])
