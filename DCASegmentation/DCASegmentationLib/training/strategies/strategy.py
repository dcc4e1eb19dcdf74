"""The interface between the training loop and a way to learn.

The loop draws patches, asks the strategy for the losses of a step, one part after the other, and hands each backward
before it asks for the next, so that only one part's graph is in memory. Everything that a strategy needs beyond that
is its own: further networks (a teacher, a second student) are modules of it, numbers that change while it trains
(weights of classes, say) are buffers of it, and both go into the checkpoint by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ...method.experts import PAPER_DILATIONS, VNET_N_STAGES
from ...method.network import DCANet
from ...method.objective import unsupervised_weight
from ...method.partition import Partition
from ...method.vnet import initialize_kaiming
from ..options import TrainingOptions


class Moment(NamedTuple):
    """Where a run is: the ``step`` it is about to take, the ``stage`` that step is of, how far ``within`` it, and the
    stage's ``length`` in steps."""

    step: int
    stage: str
    within: int
    length: int


class Batch(NamedTuple):
    """The patches of a step.

    ``volumes`` are (batch, 1, depth, height, width) in 0..1, ``labels`` int64 (batch, depth, height, width),
    ``unknown`` the labels that each patch's label map does not tell of, ``unlabelled`` like ``volumes`` or None.
    """

    volumes: Tensor
    labels: Tensor
    unknown: Sequence[Sequence[int]]
    unlabelled: Tensor | None


class Loss(NamedTuple):
    """What to minimize, and the values to log, single numbers without a graph."""

    total: Tensor
    values: dict[str, Tensor]


class Strategy(nn.Module):
    """One way to learn. ``network`` is what is validated and shipped; a subclass makes it before anything else."""

    name: ClassVar[str]
    network: DCANet

    def __init__(self, options: TrainingOptions) -> None:
        super().__init__()
        self.options = options

    def moment(self, step: int) -> Moment:
        """Where a run is at ``step``. One stage, unless a strategy says otherwise."""
        return Moment(step, "joint", step, self.options.steps)

    def begin(self, moment: Moment, averaged: DCANet | None) -> bool:
        """Called before each step; true where the optimizer and the average of the weights start anew.

        ``averaged`` are the averaged weights of ``network`` so far, where the options average.
        """
        return False

    def weight(self, moment: Moment) -> float:
        """The weight λ of what is learned from unlabelled patches; where it is 0, none are drawn."""
        length = round(self.options.ramp_fraction * moment.length)
        weight = unsupervised_weight(moment.within, length, self.options.unsupervised_weight)
        return weight if weight > self.options.negligible_weight * self.options.unsupervised_weight else 0.0

    def parts(self, moment: Moment, batch: Batch) -> tuple[str, ...]:
        """The names of the step's parts, in their order."""
        raise NotImplementedError

    def forward(self, part: str, batch: Batch, moment: Moment) -> Loss:
        """The loss of one part, ready to be minimized (weights included)."""
        raise NotImplementedError

    def after_step(self, moment: Moment) -> None:
        """Called after the optimizer's step: for teachers that follow, weights that change."""

    def learning(self) -> Iterator[nn.Parameter]:
        """What the optimizer changes: the weights that ask for a gradient, ``network``'s first."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)


def plain_vnet(options: TrainingOptions, groups: Partition, dropout: float = 0.0) -> DCANet:
    """The backbone with a single decoder, the paper's medium one, for all organs."""
    labels = sorted(label for owned in groups.owners for label in owned)
    network = DCANet(
        owners=[labels],
        n_filters=options.n_filters,
        norm=options.norm,
        n_stages=[VNET_N_STAGES],
        dilations=[PAPER_DILATIONS[1]],
        aggregation=False,
        stitching=options.stitching,
        dropout=dropout,
        upsampling=options.upsampling,
    )
    if options.initialization == "kaiming":
        initialize_kaiming(network)
    return network
