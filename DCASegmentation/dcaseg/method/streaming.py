"""The network's answer with little memory: all decoders go up level by level, and what was used last is let go.

The plain pass keeps every feature of every decoder until the aggregation decoder has taken it, as training must. Here
the decoders go side by side: once a level's features are fused, that level's skip and the level below are free. Values
are those of ``DCANet.forward_all`` but for the rounding of sums in another order. Without gradients only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dfam import DFAM
from .experts import ExpertDecoder
from .network import LEVELS, DCANet
from .stitching import comparable, join


class RequestedOutputs(NamedTuple):
    """What is asked of the network: the aggregation decoder's logits, the stitched experts', attention of levels."""

    aggregated: bool = True
    stitched: bool = False
    attention_levels: tuple[int, ...] = ()


class StreamedOutput(NamedTuple):
    """Logits (batch, channel, depth, height, width), None where not wanted, and attention as in
    ``network.DCAOutput``."""

    aggregated: Tensor | None
    stitched: Tensor | None
    attention: dict[int, Tensor]


def forward(network: DCANet, volume: Tensor, wanted: RequestedOutputs) -> StreamedOutput:
    """What is ``wanted`` of ``volume`` (batch, in_channels, depth, height, width), and nothing else computed.

    Attention depends on the experts alone, so without ``aggregated`` there is no aggregation decoder to run. The
    result of a network that has none is the stitched experts', for either of the two. Raises ValueError for attention
    that the network's fusion does not have.
    """
    decoder = network.aggregation
    if wanted.attention_levels and (decoder is None or network.options["fusion"] not in ("dfam", "average")):
        raise ValueError("this network has no attention")
    experts = cast("list[ExpertDecoder]", list(network.experts))
    aggregates = wanted.aggregated and decoder is not None
    corrects = aggregates and network.residual
    skips = network.encoder(volume)
    stream = skips.pop()
    features = [stream] * len(experts)
    attention: dict[int, Tensor] = {}
    for index, level in enumerate(LEVELS):
        skip = skips.pop()
        for each, expert in enumerate(experts):
            features[each] = _through(expert.blocks[index], expert.ups[index](features[each]).add_(skip))
        stream = decoder.ups[index](stream).add_(skip) if aggregates and decoder is not None else features[0]
        del skip
        if decoder is not None and (aggregates or level in wanted.attention_levels):
            fuse = decoder.fusions[index]
            weights = _attention(fuse, features)
            if weights is not None and level in wanted.attention_levels:
                attention[level] = weights
            if aggregates:
                stream = _through(decoder.blocks[index], _fused(fuse, features, stream, weights))
            del weights
    stitched = None
    if wanted.stitched or corrects or (wanted.aggregated and decoder is None):
        stitched = _stitched(network, features)
    del features
    if decoder is None:
        return StreamedOutput(stitched if wanted.aggregated else None, stitched if wanted.stitched else None, {})
    aggregated = decoder.head(stream) if aggregates else None
    if corrects and aggregated is not None and stitched is not None:
        aggregated.add_(stitched)
    return StreamedOutput(aggregated, stitched if wanted.stitched else None, attention)


def _through(block: nn.Module, features: Tensor) -> Tensor:
    # Called as a whole, the block's caller would hold its input until the end.
    for layer in block.children():
        features = layer(features)
    return features


def _attention(fuse: nn.Module, features: Sequence[Tensor]) -> Tensor | None:
    if not isinstance(fuse, DFAM):
        fused: Tensor | None = fuse(features, torch.zeros_like(features[0])).attention
        return fused
    # The convolution over the concatenated experts is the sum of one over each, and each takes the 1x1x1 before it in.
    kernels = fuse.mix.weight.split(features[0].shape[1], dim=1)
    unify = cast("list[nn.Conv3d]", list(fuse.unify))
    mixed: Tensor | None = None
    for own, first, kernel in zip(features, unify, kernels, strict=True):
        whole = torch.einsum("omzyx,mi->oizyx", kernel, first.weight[:, :, 0, 0, 0])
        part = functional.conv3d(own, whole, fuse.mix.bias if mixed is None else None, padding=1)
        mixed = part if mixed is None else mixed.add_(part)
        del part
    assert mixed is not None
    # Their biases reach the border too, but not the padding beyond it. Ones of the features' own are no constant to a
    # converter, which would keep the outcome as a volume.
    ones = features[0][:1, :1].clamp(1, 1)
    biased = [torch.einsum("omzyx,m->ozyx", kernel, first.bias) for first, kernel in zip(unify, kernels, strict=True)]
    mixed.add_(functional.conv3d(ones, torch.stack(biased).sum(dim=0)[:, None], padding=1))
    return torch.softmax(fuse.gate(mixed.relu_()), dim=1)


def _fused(fuse: nn.Module, features: Sequence[Tensor], stream: Tensor, weights: Tensor | None) -> Tensor:
    if not isinstance(fuse, DFAM) or weights is None:
        whole: Tensor = fuse(features, stream).features
        return whole
    for each, own in enumerate(features):
        stream = stream.addcmul_(weights[:, each : each + 1], own)
    return stream


def _stitched(network: DCANet, features: list[Tensor]) -> Tensor:
    """The stitched logits; of each expert's head only the channels that it owns, and the background, are computed."""
    experts = cast("list[ExpertDecoder]", list(network.experts))
    if network.stitching == "log_softmax":
        # It needs every channel.
        return network.stitch([expert.head(own) for expert, own in zip(experts, features, strict=True)])
    backgrounds, foregrounds = [], []
    for expert, own, owned in zip(experts, features, network.owners, strict=True):
        rows = [0, *owned]
        bias = None if expert.head.bias is None else _rows(expert.head.bias, rows)
        logits = comparable(functional.conv3d(own, _rows(expert.head.weight, rows), bias), network.stitching)
        backgrounds.append(logits[:, :1])
        foregrounds.append(logits[:, 1:])
    return join(backgrounds, foregrounds, network.owners)


def _rows(parameter: Tensor, rows: Sequence[int]) -> Tensor:
    # A list as index would become a tensor of the CPU, which no CUDA graph takes.
    return torch.stack([parameter[row] for row in rows])
