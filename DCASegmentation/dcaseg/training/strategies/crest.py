"""CReST: class-rebalancing self-training (Wei et al., CVPR 2021).

Pseudo-labels of rare classes are precise, although few. With classes sorted by their labeled count N_1 >= ... >= N_C,
the class of rank l has the rate (N_{C+1-l} / N_1)^(1/3), which is 1 for the rarest.

``row``: DHC's port, based on CPS. These rates, computed from each network's own pseudo-labels in the step (running mean
.99, starting from the labeled counts), are class weights for weighted cross-entropy + weighted foreground Dice on
labels, and for weighted cross-entropy in the cross loss. There are no generations. The running mean is of the counts;
that of the port is of the weights of single steps (``average``), in which any class that is absent from the patches
counts as the rarest, and the most frequent class gets almost no weight. Cost: as CPS. ``published``: self-training in
generations, based on FixMatch. At the start of each generation except the first, all unlabeled cases are predicted. For
each class, the most confident voxels, according to its rate, become labels, and all others are ignored; they replace
those of the previous generation. The network then restarts from new weights (``restart``). The unit is a voxel, not an
image. ``align`` is CReST+: the distribution of the pseudo-labels is moved toward that of the labels, more in early
generations. Cost: 0.6 times CPS, plus a prediction of all unlabeled cases per generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.vnet import initialize_kaiming
from ...option_fields import option
from ..cases import Case
from ..distributed import sum_over_processes
from ..ema import update_average
from ..options import TrainingOptions
from .base import DatasetFingerprint, Pool, StepState, limit_warmup_steps
from .class_statistics import compute_reversed_weights
from .fixmatch import FixMatch, make_pseudo_labeled_cases
from .stages import Stages, split_into_equal_stages
from .two_networks import WeightedNetworks


@dataclass(frozen=True)
class CReSTOptions:
    """Options of CReST."""

    variant: Literal["row", "published"] = option("row", "row: DHC's port on CPS; published: generations on FixMatch")
    exponent: float = option(1 / 3, "how steeply the rates decrease with a class's count")
    average: Literal["counts", "weights"] = option(
        "counts", "row: the running mean is of the counts, or, as in the port, of the weights of single steps"
    )
    generations: int = option(3, "published: number of generations, each with new pseudo-labels")
    restart: bool = option(True, "published: new weights for each generation")
    align: bool = option(True, "published: distribution alignment (CReST+)")

    def __post_init__(self) -> None:
        if self.exponent <= 0 or self.generations < 1:
            raise ValueError("exponent must be above 0, and generations 1 or more")


class PublishedCReST(FixMatch):
    """Self-training in generations, each with new pseudo-labels."""

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
        self.stages = Stages(
            lambda steps: split_into_equal_stages(steps, self.strategy_options.generations), options.steps
        )

    @classmethod
    def require(cls, options: TrainingOptions, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.require``."""
        super().require(options, fingerprint)
        cls.require_steps(options, "generations", cls.parse_options(options).generations)

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        voxels = torch.tensor(fingerprint.voxels, dtype=torch.float)
        self.shares.copy_(voxels / voxels.sum())
        self.predicted.copy_(self.shares)

    def get_step_state(self, step: int) -> StepState:
        """See ``Strategy.get_step_state``."""
        generation, stage_step, stage_steps = self.stages.get_stage(step, self.options.steps)
        return StepState(step, f"generation {generation}", stage_step, stage_steps)

    def resume(self, step: int, saved: TrainingOptions, stored: Mapping[str, Tensor]) -> None:
        """See ``Strategy.resume``."""
        self.stages.resume(step, saved.steps, self.options.steps, stored)

    def get_warmup_steps(self, step_state: StepState) -> int:
        """See ``Strategy.get_warmup_steps``."""
        return limit_warmup_steps(step_state, self.options)

    def select_new_cases(self, step_state: StepState, pool: Pool) -> Sequence[Case] | None:
        """See ``Strategy.select_new_cases``."""
        if not self.stages.begins(step_state.step):
            return None
        assert self.fingerprint is not None
        rates = compute_reversed_weights(
            torch.tensor(self.fingerprint.voxels, dtype=torch.double), self.strategy_options.exponent
        )
        return make_pseudo_labeled_cases(pool, rates.tolist(), of_predicted=True)

    def on_step_start(self, step_state: StepState, averaged: object) -> bool:
        """See ``Strategy.on_step_start``."""
        if not self.stages.begins(step_state.step):
            return False
        if self.strategy_options.restart:
            # A different draw in each generation, but the same in a resumed run and in every process.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed + 1_000_003 * step_state.step)
                for module in self.network.modules():
                    reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
                    if reset is not None:
                        reset()
                if self.options.initialization == "kaiming":
                    initialize_kaiming(self.network)
        return True

    def align_distribution(self, probabilities: Tensor, step_state: StepState) -> Tensor:
        """See ``FixMatch.align_distribution``."""
        if not self.strategy_options.align:
            return probabilities
        # From 1 in the first generation to 1/2 in the last.
        generation = self.stages.get_stage(step_state.step, self.options.steps)[0]
        power = 1 - 0.5 * generation / max(self.strategy_options.generations - 1, 1)
        totals = sum_over_processes(probabilities.sum(dim=(0, 2, 3, 4)))
        update_average(self.predicted, totals / totals.sum(), 0.99)
        ratio = (self.shares**power + 1e-6) / (self.predicted + 1e-6)
        rescaled = probabilities * ratio[None, :, None, None, None]
        return rescaled / rescaled.sum(dim=1, keepdim=True)


class CReST(WeightedNetworks):
    """CPS with CReST's rates as class weights."""

    name: ClassVar[str] = "crest"
    published = PublishedCReST
    Options: ClassVar[type[CReSTOptions]] = CReSTOptions
    own: CReSTOptions
    needs_every_organ: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.shares: Tensor
        self.register_buffer("shares", torch.zeros(2, self.channels))

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.prepare``."""
        super().prepare(fingerprint)
        voxels = torch.tensor(fingerprint.voxels, dtype=torch.float)
        self.shares.copy_(voxels / voxels.sum())

    def compute_class_weights(self, voxels: Tensor) -> Tensor:
        """See ``WeightedNetworks.compute_class_weights``."""
        return compute_reversed_weights(voxels, self.strategy_options.exponent)

    def select_counted_logits(self, logits: Tensor, labeled: int) -> Tensor:
        """The unlabeled patches."""
        return logits[labeled:]

    def update_weights(self, which: int, voxels: Tensor) -> None:
        """See ``WeightedNetworks.update_weights``."""
        if self.strategy_options.average == "weights":
            super().update_weights(which, voxels)
            return
        update_average(self.shares[which], voxels / voxels.sum(), self._DECAY)
        self.weights[which].copy_(self.compute_class_weights(self.shares[which]))
