"""CReST: class-rebalancing self-training (Wei et al., CVPR 2021).

Pseudo-labels of rare classes are precise though few. With classes sorted by labelled count N_1 >= ... >= N_C, the
class of rank l gets the rate (N_{C+1-l} / N_1)^(1/3): 1 for the rarest.

``row``: DHC's port, on CPS: these rates, of each network's own pseudo-labels in the step, are weights of classes
(running mean .99, from the labelled counts) of weighted cross-entropy + weighted foreground Dice on labels, and of
weighted cross-entropy in the cross loss. No generations. A class that no pseudo-label of the step has makes the most
frequent one weigh next to nothing, as in the port. Cost 1 CPS.
``published``: self-training in generations, on FixMatch. At the start of each generation but the first all unlabelled
cases are predicted; of each class the most confident voxels, its rate's share, become labels, all others are ignored;
they replace those of the generation before. The network then starts from fresh weights (``restart``). The unit is a
voxel, not an image. ``align`` is CReST+: pseudo-labels' distribution is moved toward that of the labels, more so in
early generations. Cost .6 CPS and a prediction of all unlabelled cases for each generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...method.log_gap import Partition
from ..cases import Case
from ..ema import update_average
from ..options import TrainingOptions
from .base import Facts, Pool, StepState, option
from .class_statistics import reversed_weights
from .fixmatch import FixMatch, pseudo_labelled
from .two_networks import WeighedNetworks


@dataclass(frozen=True)
class CReSTOptions:
    """Which reading, and of the published one its generations."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port on CPS; published: generations on FixMatch")
    exponent: float = option(1 / 3, "how steeply rates fall with a class's count")
    generations: int = option(3, "published: parts of the run, each with pseudo-labels of its own")
    restart: bool = option(True, "published: fresh weights for each generation")
    align: bool = option(True, "published: distribution alignment (CReST+)")

    def __post_init__(self) -> None:
        if self.exponent <= 0 or self.generations < 1:
            raise ValueError("exponent is above 0 and generations are 1 or more")


class PublishedCReST(FixMatch):
    """Generations of self-training, each with pseudo-labels taken anew."""

    name: ClassVar[str] = "crest"
    Options: ClassVar[type[CReSTOptions]] = CReSTOptions
    own: CReSTOptions
    needs_every_organ: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.shares: Tensor
        self.predicted: Tensor
        self.register_buffer("shares", torch.full((self.channels,), 1 / self.channels))
        self.register_buffer("predicted", torch.full((self.channels,), 1 / self.channels))

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        voxels = torch.tensor(facts.voxels, dtype=torch.float)
        self.shares.copy_(voxels / voxels.sum())
        self.predicted.copy_(self.shares)

    def step_state(self, step: int) -> StepState:
        first, last, generation = self._generation(step)
        return StepState(step, f"generation {generation}", step - first, last - first)

    def _generation(self, step: int) -> tuple[int, int, int]:
        """First step, end and number of the generation that ``step`` lies in."""
        borders = np.linspace(0, self.options.steps, self.own.generations + 1).round().astype(int)
        generation = int(np.searchsorted(borders[1:-1], step, side="right"))
        return int(borders[generation]), int(borders[generation + 1]), generation

    def new_cases(self, step_state: StepState, pool: Pool) -> Sequence[Case] | None:
        if step_state.stage_step or not step_state.step:
            return None
        assert self.facts is not None
        rates = reversed_weights(torch.tensor(self.facts.voxels, dtype=torch.double), self.own.exponent)
        return pseudo_labelled(pool, rates.tolist(), of_predicted=True)

    def on_step_start(self, step_state: StepState, averaged: object) -> bool:
        if step_state.stage_step or not step_state.step:
            return False
        if self.own.restart:
            # A draw of its own for each generation, the same in a resumed run and in every process.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed + 1_000_003 * step_state.step)
                for module in self.network.modules():
                    reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
                    if reset is not None:
                        reset()
        return True

    def aligned(self, probabilities: Tensor, step_state: StepState) -> Tensor:
        if not self.own.align:
            return probabilities
        # From 1 in the first generation to 1/2 in the last.
        power = 1 - 0.5 * self._generation(step_state.step)[2] / max(self.own.generations - 1, 1)
        update_average(self.predicted, probabilities.mean(dim=(0, 2, 3, 4)), 0.99)
        ratio = (self.shares**power + 1e-6) / (self.predicted + 1e-6)
        turned = probabilities * ratio[None, :, None, None, None]
        return turned / turned.sum(dim=1, keepdim=True)


class CReST(WeighedNetworks):
    """CPS with the rates of CReST as weights of classes."""

    name: ClassVar[str] = "crest"
    published = PublishedCReST
    Options: ClassVar[type[CReSTOptions]] = CReSTOptions
    own: CReSTOptions
    needs_every_organ: ClassVar[bool] = True

    def weights_of(self, voxels: Tensor) -> Tensor:
        return reversed_weights(voxels, self.own.exponent)

    def counted(self, answer: Tensor, labelled: int) -> Tensor:
        return answer[labelled:]
