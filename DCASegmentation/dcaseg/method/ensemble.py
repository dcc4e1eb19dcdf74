"""Ensembles: several networks with the same options, whose predictions are averaged.

Methods that train two networks, such as cross pseudo supervision, segment with both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .channel_attention import AttendingNet
from .network import LEVELS, DCANet, DCAOutput

MeanOf = Literal["logits", "probabilities"]


def average_predictions(logits: Sequence[Tensor], mean_of: MeanOf) -> Tensor:
    """The mean of the networks' ``logits`` or, with "probabilities", the logarithm of their mean softmax.

    All are (batch, channel, depth, height, width). The mean is computed in single precision.
    """
    stacked = torch.stack([each.float() for each in logits])
    if mean_of == "logits":
        return stacked.mean(dim=0)
    return stacked.softmax(dim=2).mean(dim=0).clamp(min=1e-12).log()


class EnsembleNet(DCANet):
    """``members`` networks with the same ``options`` (see ``DCANet``) and different weights.

    The result is ``average_predictions`` of all. The encoder and the experts of this object are those of the first
    member; ``others`` are the remaining members. Raises ValueError for fewer than two members, or members with an
    aggregation decoder, since the members' attention cannot be averaged.
    """

    def __init__(self, members: int, mean_of: MeanOf = "logits", **options: Any) -> None:
        super().__init__(**options)
        if members < 2:
            raise ValueError("an ensemble needs at least two members")
        if self.aggregation is not None:
            raise ValueError("the members of an ensemble must not have an aggregation decoder")
        self.others = nn.ModuleList(DCANet(**options) for _ in range(members - 1))
        self.mean_of: MeanOf = mean_of
        self.options |= {"members": members, "mean_of": mean_of}

    @classmethod
    def from_networks(cls, networks: Sequence[DCANet], mean_of: MeanOf) -> EnsembleNet:
        """The ensemble of these ``networks``, with copies of their weights."""
        ensemble = cls(len(networks), mean_of, **networks[0].options)
        state = dict(networks[0].state_dict())
        for index, network in enumerate(networks[1:]):
            state |= {f"others.{index}.{key}": value for key, value in network.state_dict().items()}
        ensemble.load_state_dict(state)
        return ensemble

    def forward_all(self, volume: Tensor, attention_levels: Collection[int] = LEVELS) -> DCAOutput:
        """The mean prediction, and that of each expert; there is no attention. See ``DCANet.forward_all``."""
        others = cast("list[DCANet]", list(self.others))
        outputs = [super().forward_all(volume, ()), *(other.forward_all(volume, ()) for other in others)]
        experts = zip(*(output.experts for output in outputs), strict=True)
        return DCAOutput(
            average_predictions([output.aggregated for output in outputs], self.mean_of),
            tuple(average_predictions(of_expert, self.mean_of) for of_expert in experts),
            {},
        )


def get_network_class(options: Mapping[str, Any]) -> type[DCANet]:
    """The class of the network with these options, as stored in a bundle.

    It is an ensemble if they have ``members``, and has channel attention if they have ``attended_patch``.
    """
    if "members" in options:
        return EnsembleNet
    return AttendingNet if "attended_patch" in options else DCANet


def create_network(options: Mapping[str, Any]) -> DCANet:
    """The network with these options. Raises ValueError or TypeError if they do not define one."""
    return get_network_class(options)(**options)
