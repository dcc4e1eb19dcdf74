"""The whole network (Fig. 3): one encoder, the experts, and the aggregation decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .dfam import FusionKind, fusion
from .experts import PAPER_DILATIONS, PAPER_N_STAGES, VNET_N_STAGES, Decoded, ExpertDecoder
from .stitching import StitchingMode, stitch
from .vnet import ConvBlock, Encoder, Norm, Upsampling, UpsamplingMode

LEVELS = (1, 2, 3, 4)


class DCAOutput(NamedTuple):
    """Everything the network says of a volume.

    ``aggregated`` and each of ``experts`` are logits (batch, channel, depth, height, width); ``attention`` maps a
    level (1 is DeB-6 at 1/8 resolution, 4 is DeB-9 at full resolution) to (batch, expert, depth, height, width),
    which sums to one over the experts. A fusion without weights leaves ``attention`` empty.
    """

    aggregated: Tensor
    experts: tuple[Tensor, ...]
    attention: dict[int, Tensor]


class AggregationDecoder(nn.Module):
    """The decoder D_A: at each level up-sampling, added skip, fusion with the experts, a convolution block."""

    def __init__(
        self,
        n_filters: int,
        out_channels: int,
        norm: Norm,
        n_experts: int,
        kind: FusionKind,
        upsampling: UpsamplingMode = "transposed",
    ) -> None:
        super().__init__()
        widths = [n_filters * 2**level for level in (3, 2, 1, 0)]
        self.ups = nn.ModuleList(Upsampling(2 * width, width, norm, upsampling) for width in widths)
        self.fusions = nn.ModuleList(fusion(kind, width, n_experts) for width in widths)
        self.blocks = nn.ModuleList(
            ConvBlock(width, width, stages, norm) for width, stages in zip(widths, VNET_N_STAGES, strict=True)
        )
        self.head = nn.Conv3d(n_filters, out_channels, kernel_size=1)

    def forward(
        self, encoded: Sequence[Tensor], experts: Sequence[Sequence[Tensor]], attention_levels: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits, and the attention of the levels asked for.

        ``encoded`` are x1 to x5 of the encoder, ``experts`` the features F6 to F9 of each expert.
        """
        attention: dict[int, Tensor] = {}
        stream = encoded[-1]
        skips = reversed(encoded[:-1])
        for level, up, fuse, block, skip in zip(LEVELS, self.ups, self.fusions, self.blocks, skips, strict=True):
            fused = fuse([features[level - 1] for features in experts], up(stream) + skip)
            if fused.attention is not None and level in attention_levels:
                attention[level] = fused.attention
            stream = block(fused.features)
        return self.head(stream), attention

    def copy_blocks(self, expert: ExpertDecoder) -> None:
        """Take the up-sampling and convolution blocks of ``expert``.

        The fusions and the head keep their weights: the head reads features to which the fusions have added those of
        all experts, which no expert's head has ever seen. Raises ValueError if the expert has other blocks.
        """
        if expert.n_stages != VNET_N_STAGES:
            raise ValueError("only a plain V-Net expert has the blocks of the aggregation decoder")
        for own, other in ((self.ups, expert.ups), (self.blocks, expert.blocks)):
            own.load_state_dict(other.state_dict())

    def zero_head(self) -> None:
        """Let every logit be zero until training changes it."""
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)


class DCANet(nn.Module):
    """DCA's network. Every option is plain data, so that a bundle's JSON can rebuild it.

    ``owners`` holds for each expert the labels it answers for (log-gap analysis gives head, medium and tail); an
    expert without labels is not built. One set of owners gives the paper's single-decoder baseline; ``aggregation``
    off leaves the stitched experts as the result. Defaults are the paper's, save for the stitching: see
    ``stitching.stitch``.

    With ``residual`` the logits of the aggregation decoder are a correction: they are added to the stitched experts'
    logits, without a gradient for these, and start at zero. So the network begins with exactly the stitched experts'
    answer. The paper's decoder (``residual`` off) has to learn every organ anew. ``upsampling``: see
    ``vnet.Upsampling``.

    The sides of a volume must be divisible by 16. Raises ValueError for options that do not fit together.
    """

    divisor = 16

    def __init__(
        self,
        owners: Sequence[Sequence[int]],
        in_channels: int = 1,
        n_filters: int = 16,
        norm: Norm = "batch",
        n_stages: Sequence[Sequence[int]] = PAPER_N_STAGES,
        dilations: Sequence[Sequence[int]] = PAPER_DILATIONS,
        fusion: FusionKind = "dfam",
        aggregation: bool = True,
        stitching: StitchingMode = "background_relative",
        dropout: float = 0.0,
        upsampling: UpsamplingMode = "transposed",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not len(owners) == len(n_stages) == len(dilations):
            raise ValueError("owners, n_stages and dilations need one entry for each expert")
        built = [expert for expert, owned in enumerate(owners) if owned]
        self.owners = tuple(tuple(owners[expert]) for expert in built)
        labels = sorted(label for owned in self.owners for label in owned)
        if not labels or labels != list(range(1, len(labels) + 1)):
            raise ValueError(f"owners must hold each label from 1 to K exactly once, got {list(owners)}")
        self.out_channels = len(labels) + 1
        self.stitching: StitchingMode = stitching
        self.residual = residual
        self.options: dict[str, Any] = {
            "owners": [list(owned) for owned in owners],
            "in_channels": in_channels,
            "n_filters": n_filters,
            "norm": norm,
            "n_stages": [list(stages) for stages in n_stages],
            "dilations": [list(dilation) for dilation in dilations],
            "fusion": fusion,
            "aggregation": aggregation,
            "stitching": stitching,
            "dropout": dropout,
            "upsampling": upsampling,
            "residual": residual,
        }
        # Position of each built expert among head, medium and tail: an empty group leaves a gap.
        self.expert_slots = tuple(built)
        self.encoder = Encoder(in_channels, n_filters, norm, dropout)
        self.experts = nn.ModuleList(
            ExpertDecoder(n_filters, self.out_channels, norm, n_stages[expert], dilations[expert], dropout, upsampling)
            for expert in built
        )
        self.aggregation = (
            AggregationDecoder(n_filters, self.out_channels, norm, len(built), fusion, upsampling)
            if aggregation
            else None
        )
        if residual and self.aggregation is not None:
            self.aggregation.zero_head()

    @property
    def has_weights(self) -> bool:
        """Whether it can be run; not so for what ``without_weights`` gives."""
        return not next(self.parameters()).is_meta

    def without_weights(self) -> DCANet:
        """A network of the same options whose parameters take no memory: all can be asked of it but to run."""
        with torch.device("meta"):
            return DCANet(**self.options).eval()

    def forward(self, volume: Tensor) -> Tensor:
        """Logits (batch, channel, depth, height, width) of the result for (batch, in_channels, depth, height, width).

        The aggregation decoder's, or without one the stitched experts'.
        """
        return self.forward_all(volume, attention_levels=()).aggregated

    def forward_all(self, volume: Tensor, attention_levels: Collection[int] = LEVELS) -> DCAOutput:
        """The result with the experts' logits and the attention of ``attention_levels``."""
        encoded = self.encoder(volume)
        decoded = self.decode_experts(encoded)
        logits = tuple(expert.logits for expert in decoded)
        if self.aggregation is None:
            return DCAOutput(self.stitch(logits), logits, {})
        aggregated, attention = self.aggregate(encoded, decoded, attention_levels)
        return DCAOutput(aggregated, logits, attention)

    def aggregate(
        self, encoded: Sequence[Tensor], decoded: Sequence[Decoded], attention_levels: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The final logits (batch, channel, depth, height, width), and the attention of ``attention_levels``.

        ``encoded`` are x1 to x5 of the encoder, ``decoded`` what the experts made of them. Raises ValueError for a
        network without aggregation decoder.
        """
        if self.aggregation is None:
            raise ValueError("this network has no aggregation decoder")
        logits, attention = self.aggregation(encoded, [expert.features for expert in decoded], attention_levels)
        if self.residual:
            logits = logits + self.stitch([expert.logits for expert in decoded]).detach()
        return logits, attention

    def decode_experts(self, encoded: Sequence[Tensor]) -> list[Decoded]:
        """Features and logits of every expert from x1 to x5 of the encoder."""
        return [expert(encoded) for expert in self.experts]

    def stitch(self, expert_logits: Sequence[Tensor]) -> Tensor:
        """The experts' stitched logits, in the network's own stitching mode."""
        return stitch(expert_logits, self.owners, self.stitching)


def start_from(network: DCANet, initial: DCANet) -> None:
    """Give ``network`` the weights of ``initial``.

    An expert that gets an organ it did not own keeps the fresh weights of that logit: to an expert the organs of the
    others are background, and a logit that has learned never to be the largest is slow to unlearn it. Where
    ``initial`` has transposed up-convolutions and ``network`` trilinear interpolation, the eight kernels of a
    convolution become their mean, which is what they share below the Nyquist frequency. A decoder that has become a
    correction (``residual``) starts at zero. Raises ValueError if the networks differ in anything else.
    """
    heads: list[nn.Conv3d] = [expert.head for expert in network.experts]  # type: ignore[misc]
    fresh = [[parameter.detach().clone() for parameter in head.parameters()] for head in heads]
    fitted = _fit_upsampling(initial.state_dict(), network.state_dict())
    try:
        network.load_state_dict(fitted)
    except RuntimeError:
        free = ("owners", "upsampling", "residual")
        differing = [key for key, value in network.options.items() if key not in free and value != initial.options[key]]
        raise ValueError(f"the networks differ in {', '.join(differing) or 'their experts'}") from None
    before = dict(zip(initial.expert_slots, initial.owners, strict=True))
    for slot, owned, head, values in zip(network.expert_slots, network.owners, heads, fresh, strict=True):
        new = sorted(set(owned) - set(before[slot]))
        for parameter, value in zip(head.parameters(), values, strict=True):
            parameter.data[new] = value[new]
    if network.aggregation is not None and network.residual and not initial.residual:
        network.aggregation.zero_head()


def _fit_upsampling(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the eight kernels of each transposed convolution averaged where ``wanted`` has one for all."""
    fitted = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        reduced = f"{stem}.reduce.{kind}"
        if key in wanted or reduced not in wanted:
            fitted[key] = value
        elif kind == "weight":
            fitted[reduced] = value.mean(dim=(2, 3, 4), keepdim=True).transpose(0, 1)
        else:
            fitted[reduced] = value
    return fitted
