"""The whole network (Fig. 3): one encoder, the experts, and the aggregation decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .dfam import make_fusion
from .experts import DecoderOutput, ExpertDecoder
from .stitching import stitch
from .variants import (
    PAPER_DILATIONS,
    PAPER_N_STAGES,
    VNET_N_STAGES,
    Combination,
    FusionKind,
    Norm,
    UpsamplingMode,
)
from .vnet import ConvBlock, Encoder, Upsampling

# Level 1 is DeB-6 at 1/8 resolution, level 4 is DeB-9 at full resolution.
LEVELS = (1, 2, 3, 4)


class DCAOutput(NamedTuple):
    """All outputs of the network.

    ``aggregated`` (the result) and each of ``experts`` are logits (batch, channel, depth, height, width).
    ``attention`` maps a level (see ``LEVELS``) to the experts' weights (batch, expert, depth, height, width) at that
    level's resolution, which sum to one over the experts. It is empty for a fusion without weights.
    """

    aggregated: Tensor
    experts: tuple[Tensor, ...]
    attention: dict[int, Tensor]


class AggregationDecoder(nn.Module):
    """The decoder D_A: at each level upsampling, an added skip, fusion with the experts, a convolution block."""

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
        self.fusions = nn.ModuleList(make_fusion(kind, width, n_experts) for width in widths)
        self.blocks = nn.ModuleList(
            ConvBlock(width, width, stages, norm) for width, stages in zip(widths, VNET_N_STAGES, strict=True)
        )
        self.head = nn.Conv3d(n_filters, out_channels, kernel_size=1)

    def forward(
        self, encoded: Sequence[Tensor], experts: Sequence[Sequence[Tensor]], attention_levels: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits (batch, channel, depth, height, width), and the attention of the requested levels.

        ``encoded`` are the encoder's features x1 to x5, ``experts`` the features F6 to F9 of each expert. The attention
        is as in ``DCAOutput``.
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
        """Copy the weights of the upsampling and convolution blocks of ``expert``.

        The fusions and the head keep their weights: the head's input includes the features of all experts, which no
        expert's head was trained on. Raises ValueError if the expert's blocks have a different structure.
        """
        if expert.n_stages != VNET_N_STAGES:
            raise ValueError("only a plain V-Net expert has the blocks of the aggregation decoder")
        for own, other in ((self.ups, expert.ups), (self.blocks, expert.blocks)):
            own.load_state_dict(other.state_dict())

    def zero_head(self) -> None:
        """Set the head's weights and biases to zero, so that training starts with zero logits."""
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)


class DCANet(nn.Module):
    """DCA's network (Fig. 3). All options are plain data, so that they can be stored in a bundle's JSON.

    - ``owners``: the labels of each expert (log-gap analysis gives head, medium and tail). An expert without labels is
      not built. A single expert is the paper's single-decoder baseline.
    - ``in_channels``, ``n_filters`` (f, the channels of x1), ``norm``, ``dropout``: see ``vnet.Encoder``.
    - ``n_stages``, ``dilations``: four numbers per expert, see ``experts.ExpertDecoder``.
    - ``fusion``: the fusion module, see ``dfam``. ``upsampling``: see ``vnet.Upsampling``.
    - ``aggregation``: without it, the stitched experts' logits are the result.
    - ``stitching``: see ``stitching.stitch``. It is the one option whose default differs from the paper. With
      ``average``, each expert knows all organs, and ``owners`` only sets their number.
    - ``residual``: the aggregation decoder's logits start at zero and are added to the stitched experts' logits, which
      get no gradient from the sum. The network then starts with exactly the stitched experts' result; the paper's
      decoder (``residual`` off) has to learn every organ from scratch.

    The sides of an input volume must be divisible by 16 (``divisor``). Raises ValueError if the options contradict
    each other.

    Example, one step with labels 1 (large), 2 and 3 (small)::

        import torch
        from dcaseg import DCANet, partition, segmentation_loss

        groups = partition({1: 900_000, 2: 60_000, 3: 900})  # voxels of each label in the labeled CTs
        network = DCANet(groups.owners, n_filters=8, norm="instance")
        volume = torch.rand(2, 1, 32, 32, 32)  # HU from -125 to 275, scaled to 0 to 1
        labels = torch.randint(0, 4, (2, 32, 32, 32))
        loss = segmentation_loss(network(volume), labels)
        loss.backward()
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
        stitching: Combination = "background_relative",
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
        self.stitching: Combination = stitching
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
        # The index of each expert among head (0), medium (1) and tail (2); an empty group has no expert.
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
        """Whether the network can run. A network made by ``copy_without_weights`` cannot."""
        return not next(self.parameters()).is_meta

    def copy_without_weights(self) -> DCANet:
        """A network with the same options whose parameters take no memory. It can be inspected but not run."""
        with torch.device("meta"):
            return type(self)(**self.options).eval()

    def forward(self, volume: Tensor) -> Tensor:
        """The result's logits (batch, channel, depth, height, width).

        They are the aggregation decoder's or, in a network without one, the stitched experts'. ``volume`` is (batch,
        in_channels, depth, height, width).
        """
        return self.forward_all(volume, attention_levels=()).aggregated

    def forward_all(self, volume: Tensor, attention_levels: Collection[int] = LEVELS) -> DCAOutput:
        """The result's logits, the experts' logits, and the attention of ``attention_levels``.

        ``volume`` is (batch, in_channels, depth, height, width).
        """
        encoded = self.encode(volume)
        decoded = self.decode_experts(encoded)
        logits = tuple(expert.logits for expert in decoded)
        if self.aggregation is None:
            return DCAOutput(self.stitch(logits), logits, {})
        aggregated, attention = self.aggregate(encoded, decoded, attention_levels)
        return DCAOutput(aggregated, logits, attention)

    def aggregate(
        self, encoded: Sequence[Tensor], decoded: Sequence[DecoderOutput], attention_levels: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The result's logits (batch, channel, depth, height, width), and the attention of ``attention_levels``.

        ``encoded`` are the encoder's features x1 to x5, ``decoded`` the output of ``decode_experts``. Raises ValueError
        if the network has no aggregation decoder.
        """
        if self.aggregation is None:
            raise ValueError("this network has no aggregation decoder")
        logits, attention = self.aggregation(encoded, [expert.features for expert in decoded], attention_levels)
        if self.residual:
            logits = logits + self.stitch([expert.logits for expert in decoded]).detach()
        return logits, attention

    def encode(self, volume: Tensor) -> list[Tensor]:
        """The features x1 to x5 that the decoders get, from ``volume`` (batch, in_channels, depth, height, width)."""
        encoded: list[Tensor] = self.encoder(volume)
        return encoded

    def decode_experts(self, encoded: Sequence[Tensor]) -> list[DecoderOutput]:
        """Features and logits of every expert, from the encoder's features x1 to x5."""
        return [expert(encoded) for expert in self.experts]

    def stitch(self, expert_logits: Sequence[Tensor]) -> Tensor:
        """Stitch the experts' logits in the network's stitching mode.

        All logits are (batch, channel, depth, height, width).
        """
        return stitch(expert_logits, self.owners, self.stitching)


def load_initial_weights(network: DCANet, initial: DCANet) -> None:
    """Copy the weights of ``initial`` to ``network``. The two may differ in ``owners``, ``upsampling``, ``residual``.

    If an expert gets an organ that it did not own in ``initial``, the weights of that logit stay as initialized: an
    expert sees the other experts' organs as background, and a logit trained never to be the largest recovers slowly.
    If ``initial`` has transposed convolutions and ``network`` trilinear upsampling, the eight kernels of a convolution
    are replaced by their mean, which is what they have in common below the Nyquist frequency. If only ``network`` is
    ``residual``, the head of its aggregation decoder starts at zero.

    Raises ValueError if the networks differ in another option.
    """
    heads: list[nn.Conv3d] = [expert.head for expert in network.experts]  # type: ignore[misc]
    initialized = [[parameter.detach().clone() for parameter in head.parameters()] for head in heads]
    fitted = _fit_upsampling(initial.state_dict(), network.state_dict())
    try:
        network.load_state_dict(fitted)
    except RuntimeError:
        allowed = ("owners", "upsampling", "residual")
        differing = [
            key for key, value in network.options.items() if key not in allowed and value != initial.options[key]
        ]
        raise ValueError(f"the networks differ in {', '.join(differing) or 'their experts'}") from None
    before = dict(zip(initial.expert_slots, initial.owners, strict=True))
    for slot, owned, head, values in zip(network.expert_slots, network.owners, heads, initialized, strict=True):
        new = sorted(set(owned) - set(before[slot]))
        for parameter, value in zip(head.parameters(), values, strict=True):
            parameter.data[new] = value[new]
    if network.aggregation is not None and network.residual and not initial.residual:
        network.aggregation.zero_head()


def _fit_upsampling(state: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the kernels of each transposed convolution averaged where ``target`` has trilinear upsampling."""
    fitted = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        reduced = f"{stem}.reduce.{kind}"
        if key in target or reduced not in target:
            fitted[key] = value
        elif kind == "weight":
            fitted[reduced] = value.mean(dim=(2, 3, 4), keepdim=True).transpose(0, 1)
        else:
            fitted[reduced] = value
    return fitted
