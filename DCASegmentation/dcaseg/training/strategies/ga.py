"""GA: gradient-aware losses (Qi, Wu and Chan, ECCV 2024), based on cross pseudo supervision.

GADice of a class that occurs in the batch's labels is 1 - (2 Σ p y + ε) / (Σ p² + Σ y² + ε). For an absent class it is
Σ sg(p) p / N, whose gradient is proportional to the probability. GACE uses the fraction k of voxels with the largest
cross-entropy, n voxels: Σ_c √(n_c / n) x mean cross-entropy of class c among them (power 1/2), so the gradient of a
class is √(n / n_c) times the usual one. The supervised loss is GACE(10 %) + GADice for each network; the cross loss is
GACE(100 %) on all patches.

No deviations are known. The published AMOS script does not start, because it reads an undeclared argument. Cost: as
CPS, plus the selection of the batch's hardest voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...option_fields import option
from .base import Batch, StepState
from .losses import voxel_cross_entropy
from .two_networks import TwoNetworks

_SMALL = 1e-10


def gradient_aware_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """GADice, averaged over all channels, of the whole batch (see ``losses`` for shapes)."""
    probabilities = logits.float().softmax(dim=1)
    n_channels = probabilities.shape[1]
    truth = labels.flatten()
    zeros = probabilities.new_zeros(n_channels)
    of_truth = probabilities.gather(1, labels[:, None]).flatten()
    overlap = zeros.scatter_add(0, truth, of_truth)
    sizes = zeros.scatter_add(0, truth, torch.ones_like(of_truth))
    axes = (0, 2, 3, 4)
    present = 1 - (2 * overlap + _SMALL) / ((probabilities**2).sum(dim=axes) + sizes + _SMALL)
    absent = (probabilities.detach() * probabilities).sum(dim=axes) / labels.numel()
    return torch.where(sizes > 0, present, absent).mean()


def gradient_aware_cross_entropy(logits: Tensor, labels: Tensor, share: float, power: float = 0.5) -> Tensor:
    """GACE of the hardest fraction ``share`` of all voxels: Σ_c n_c^power / n^power x mean cross-entropy of class c."""
    loss, truth = voxel_cross_entropy(logits, labels).flatten(), labels.flatten()
    if share < 1:
        loss, chosen = loss.topk(max(1, int(share * len(loss))), sorted=False)
        truth = truth[chosen]
    sizes = torch.bincount(truth, minlength=logits.shape[1]).to(loss.dtype)
    total = loss.new_zeros(logits.shape[1]).scatter_add(0, truth, loss)
    return (total / (sizes.clamp(min=1) ** (1 - power) * len(loss) ** power)).sum()


@dataclass(frozen=True)
class GAOptions:
    """Options of GA."""

    hardest: float = option(0.1, "fraction of the labeled voxels, the hardest, that the cross-entropy uses")
    hardest_crossed: float = option(1.0, "the same for pseudo-labels")
    power: float = option(0.5, "power of a class's size: 1 is plain cross-entropy, 0 gives all classes equal weight")

    def __post_init__(self) -> None:
        if not (0 < self.hardest <= 1 and 0 < self.hardest_crossed <= 1 and 0 <= self.power <= 1):
            raise ValueError("hardest and hardest_crossed must be above 0 and at most 1, and power from 0 to 1")


class GradientAware(TwoNetworks):
    """CPS with losses that balance the gradients of the classes."""

    name: ClassVar[str] = "ga"
    Options: ClassVar[type[GAOptions]] = GAOptions
    own: GAOptions

    def compute_supervised_loss(self, which: int, logits: Tensor, batch: Batch, step_state: StepState) -> Tensor:
        """See ``TwoNetworks.compute_supervised_loss``."""
        hardest = gradient_aware_cross_entropy(
            logits, batch.labels, self.strategy_options.hardest, self.strategy_options.power
        )
        return hardest + gradient_aware_dice_loss(logits, batch.labels)

    def compute_cross_supervision_loss(
        self, which: int, logits: Tensor, labels: Tensor, step_state: StepState
    ) -> Tensor:
        """See ``TwoNetworks.compute_cross_supervision_loss``."""
        return gradient_aware_cross_entropy(
            logits, labels, self.strategy_options.hardest_crossed, self.strategy_options.power
        )
