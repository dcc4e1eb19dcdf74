"""SimiS: an embarrassingly simple baseline (Chen et al., arXiv 2211.11086).

The further a class lags behind the most frequent one, the more pseudo-labels it gets.

``row``: DHC's port, on CPS: weights of classes C (max P - P_k), P the shares of each network's own labels on all
patches of a step, background included, running mean .99 from the labelled counts. All organs come to weigh about C,
and background nothing: it says "foreground only" rather than "rare first". Cost 1 CPS.
``published``: on FixMatch. In round t of T, class k gets its n_k = (max π - π_k) N / K (1 - (t / T - 1)²) most
confident voxels of all unlabelled cases as labels, N and π being the number and the shares of foreground voxels in
the labelled cases, π in those as extended the last time; the rest is ignored. The paper has a round for each epoch
and images for voxels; ours has ``rounds``, because each predicts all unlabelled cases. Cost .6 CPS and those
predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...method.log_gap import Partition
from ..cases import Case
from ..options import TrainingOptions
from .base import Facts, Pool, StepState, option
from .class_statistics import lagging_weights
from .fixmatch import FixMatch, pseudo_labelled
from .two_networks import WeighedNetworks


@dataclass(frozen=True)
class SimiSOptions:
    """Which reading, and of the published one its rounds."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port on CPS; published: new cases on FixMatch")
    rounds: int = option(5, "published: how often the labelled cases are extended anew")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError("rounds are 1 or more")


def appended_voxels(shares: Tensor, voxels: float, progress: float) -> Tensor:
    """n_k (K,) for shares (K,) of the organs among so many labelled foreground ``voxels``, at ``progress`` t/T."""
    return (shares.max() - shares) * voxels / len(shares) * (1 - (progress - 1) ** 2)


class PublishedSimiS(FixMatch):
    """Labelled cases extended in rounds by what the rarer organs lack."""

    name: ClassVar[str] = "simis"
    Options: ClassVar[type[SimiSOptions]] = SimiSOptions
    own: SimiSOptions

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.voxels: Tensor
        self.register_buffer("voxels", torch.ones(self.channels - 1))

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        self.voxels.copy_(torch.tensor(facts.voxels[1:]))

    def new_cases(self, step_state: StepState, pool: Pool) -> Sequence[Case] | None:
        borders = np.linspace(0, self.options.steps, self.own.rounds + 1).round().astype(int)[1:-1]
        if step_state.step not in borders:
            return None
        assert self.facts is not None
        labelled = torch.tensor(self.facts.voxels[1:])
        shares = self.voxels.cpu().double() / self.voxels.sum().clamp(min=1).cpu().double()
        counts = appended_voxels(shares, float(labelled.sum()), step_state.step / self.options.steps)
        cases = pseudo_labelled(pool, [0, *counts.tolist()], of_predicted=False)
        appended = sum((case.voxel_counts(self.channels - 1)[1:] for case in cases), np.zeros(self.channels - 1, int))
        self.voxels.copy_(labelled + torch.from_numpy(np.asarray(appended)))
        return cases


class SimiS(WeighedNetworks):
    """CPS with weights of classes by how far each lags behind the most frequent one."""

    name: ClassVar[str] = "simis"
    published = PublishedSimiS
    Options: ClassVar[type[SimiSOptions]] = SimiSOptions

    def weights_of(self, voxels: Tensor) -> Tensor:
        return lagging_weights(voxels)
