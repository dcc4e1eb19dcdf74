"""SimiS: an embarrassingly simple baseline (Chen et al., arXiv 2211.11086).

The rarer a class is, compared with the most frequent one, the more pseudo-labels it gets.

``row``: DHC's port, based on CPS. Class weights are C (max P - P_k), where P are the shares of the classes, including
the background, in each network's own labels on all patches of a step (running mean .99, starting from equal weights and
once the labeled counts). As a result, all organs have a weight of about C, and the background has almost none after
some hundred steps: this favors the foreground, not rare organs. Cost: as CPS. ``published``: based on FixMatch. In
round t of T, the n_k = (max π - π_k) N / K (1 - (t / T - 1)²) most confident voxels of class k in all unlabeled cases
become labels; the others are ignored. N is the number of foreground voxels in the labeled cases, and π are the classes'
shares, including the pseudo-labels of the previous round. The paper has one round per epoch, and images instead of
voxels. Ours has ``rounds``, because each predicts all unlabeled cases. Cost: 0.6 times CPS, plus these predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...option_fields import option
from ..cases import Case
from ..options import TrainingOptions
from .base import DatasetFingerprint, Pool, StepState
from .class_statistics import compute_deficit_weights
from .fixmatch import FixMatch, make_pseudo_labeled_cases
from .stages import Stages, split_into_equal_stages
from .two_networks import WeightedNetworks


@dataclass(frozen=True)
class SimiSOptions:
    """Options of SimiS."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port on CPS; published: new cases on FixMatch")
    rounds: int = option(5, "published: number of rounds, each with new pseudo-labels")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError("rounds must be 1 or more")


def compute_appended_voxels(shares: Tensor, voxels: float, progress: float) -> Tensor:
    """n_k (K,) at ``progress`` t/T, from the organs' ``shares`` (K,) and the labeled foreground ``voxels``."""
    return (shares.max() - shares) * voxels / len(shares) * (1 - (progress - 1) ** 2)


class PublishedSimiS(FixMatch):
    """FixMatch with pseudo-labeled cases, which are renewed in rounds and favor rare organs."""

    name: ClassVar[str] = "simis"
    Options: ClassVar[type[SimiSOptions]] = SimiSOptions
    own: SimiSOptions

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.voxels: Tensor
        self.register_buffer("voxels", torch.ones(self.channels - 1))
        self.stages = Stages(lambda steps: split_into_equal_stages(steps, self.strategy_options.rounds), options.steps)

    @classmethod
    def require(cls, options: TrainingOptions, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.require``."""
        super().require(options, fingerprint)
        cls.require_steps(options, "rounds", cls.parse_options(options).rounds)

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        self.voxels.copy_(torch.tensor(fingerprint.voxels[1:]))

    def resume(self, step: int, saved: TrainingOptions, stored: Mapping[str, Tensor]) -> None:
        """See ``Strategy.resume``."""
        self.stages.resume(step, saved.steps, self.options.steps, stored)

    def select_new_cases(self, step_state: StepState, pool: Pool) -> Sequence[Case] | None:
        """See ``Strategy.select_new_cases``."""
        if not self.stages.begins(step_state.step):
            return None
        assert self.fingerprint is not None
        labeled = torch.tensor(self.fingerprint.voxels[1:])
        shares = self.voxels.cpu().double() / self.voxels.sum().clamp(min=1).cpu().double()
        counts = compute_appended_voxels(shares, float(labeled.sum()), step_state.step / self.options.steps)
        cases = make_pseudo_labeled_cases(pool, [0, *counts.tolist()], of_predicted=False)
        appended = sum((case.count_voxels(self.channels - 1)[1:] for case in cases), np.zeros(self.channels - 1, int))
        self.voxels.copy_(labeled + torch.from_numpy(np.asarray(appended)))
        return cases


class SimiS(WeightedNetworks):
    """CPS with class weights that grow with the difference from the most frequent class."""

    name: ClassVar[str] = "simis"
    published = PublishedSimiS
    Options: ClassVar[type[SimiSOptions]] = SimiSOptions

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``. The running mean starts from equal weights."""
        super().prepare(fingerprint)
        self.weights.mul_(1 - self._DECAY).add_(self._DECAY * self.channels)

    def compute_class_weights(self, voxels: Tensor) -> Tensor:
        """See ``WeightedNetworks.compute_class_weights``."""
        return compute_deficit_weights(voxels)
