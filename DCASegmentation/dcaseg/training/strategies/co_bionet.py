"""Co-BioNet: uncertainty-guided dual views (Peiris et al., Nature Machine Intelligence 2023).

Two networks and two critics. A critic D learns, voxel by voxel, to tell a prediction from a true label map; a network
learns from the other's probabilities, more where the other's critic finds them real, and to convince its own critic:
L_1 = ce(z_1, y) + Dice + λ [mean ce(p_1, p_2) + mean 1[D_2(p_2) > T] ce(p_1, p_2) + μ BCE(D_1(p_1), 1)], critic: 1/2
[BCE(D_1(one-hot y), 1) + BCE(D_1(p_1), 0)].

The published code does not do so: no gradient reaches its critics (detached losses), the first cross term is a number
without a graph, and the mask multiplies a mean, so that nothing is selected. Ours does what is written above, for
organs with a softmax in place of one sigmoid, and the critic's last layer is plain: after the published one's leaky
ReLU a sigmoid hardly falls below .45, and a threshold of .2 refuses nothing. The answer is the networks' mean
softmax, not the intersection of binary masks. Critics learn at ``critic_factor`` of the learning rate. Cost 1 CPS (2
in the published code) and the critics: maps of 64 channels at full size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, MeanOfNetworks, ParameterGroup, ScoredNetwork, StepState, Strategy, option, plain_vnet
from .losses import agreement, square_dice, voxel_loss


@dataclass(frozen=True)
class CoBioNetOptions:
    """Values of the pancreas, the nearest to organs of the abdomen."""

    threshold: float = option(0.2, "T: how real a voxel must be to the other's critic")
    adversarial: float = option(0.01, "μ: weight of convincing the critic")
    critic_factor: float = option(0.1, "the critics' learning rate as a share of the networks'")


class Critic(nn.Sequential):
    """How real each voxel of a map of probabilities is: logits (batch, 1, depth, height, width)."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for before, after in ((channels, 16), (16, 32), (32, 64)):
            layers += [nn.Conv3d(before, after, kernel_size=1), nn.BatchNorm3d(after), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv3d(64, 1, kernel_size=1))


def soft_cross_entropy(logits: Tensor, taught: Tensor) -> Tensor:
    """Cross-entropy of each voxel against probabilities (batch, channel, depth, height, width)."""
    return -(taught * functional.log_softmax(logits, dim=1)).sum(dim=1)


class CoBioNet(Strategy):
    """Two networks that teach each other where a critic believes them."""

    name: ClassVar[str] = "co_bionet"
    Options: ClassVar[type[CoBioNetOptions]] = CoBioNetOptions
    own: CoBioNetOptions
    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network, self.second = plain_vnet(options, groups), plain_vnet(options, groups)
        self.critics = nn.ModuleList(Critic(self.network.out_channels) for _ in range(2))
        self._answers: list[Tensor] = []

    def answering(self) -> ScoredNetwork:
        return MeanOfNetworks([self.network, self.second], of="probabilities")

    def parameter_groups(self) -> list[ParameterGroup]:
        networks = [*self.network.parameters(), *self.second.parameters()]
        return [ParameterGroup(networks), ParameterGroup(list(self.critics.parameters()), self.own.critic_factor)]

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("networks", "critics")

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        return self._networks(batch, step_state) if part == "networks" else self._critics(batch)

    def _networks(self, batch: Batch, step_state: StepState) -> Loss:
        labelled = len(batch.volumes)
        volumes = batch.volumes if batch.unlabelled is None else torch.cat([batch.volumes, batch.unlabelled])
        logits = [self.network(volumes).float(), self.second(volumes).float()]
        probabilities = [one.softmax(dim=1) for one in logits]
        self._answers = [one.detach() for one in probabilities]
        supervised = torch.stack(
            [
                voxel_loss(one[:labelled], batch.labels) + square_dice(p[:labelled], batch.labels)
                for one, p in zip(logits, probabilities, strict=True)
            ]
        ).sum()
        values = {"supervised": supervised.detach() / 2}
        if batch.unlabelled is None:
            return Loss(supervised, values)
        crossed, convinced, believed = supervised.new_zeros(()), supervised.new_zeros(()), supervised.new_zeros(())
        for which in (0, 1):
            taught = self._answers[1 - which][labelled:]
            with torch.no_grad():
                real = self.critics[1 - which](taught).float().sigmoid()[:, 0] > self.own.threshold
            crossed = crossed + selected_cross_entropy(logits[which][labelled:], taught, real)
            believed = believed + real.float().mean() / 2
            # The critic's weights without a graph: it is not to learn to be convinced.
            frozen = {name: one.detach() for name, one in self.critics[which].named_parameters()}
            verdict: Tensor = functional_call(self.critics[which], frozen, (probabilities[which],))
            convinced = convinced + real_or_not(verdict, real=True)
        total = supervised + self.weight(step_state) * (crossed + self.own.adversarial * convinced)
        values["unsupervised"] = crossed.detach()
        values["certain"] = believed
        labels = [one[labelled:].argmax(dim=1) for one in self._answers]
        return Loss(total, {**values, "adversarial": convinced.detach(), "agreement": agreement(*labels)})

    def _critics(self, batch: Batch) -> Loss:
        channels = self.network.out_channels
        truth = functional.one_hot(batch.labels, channels).movedim(-1, 1).float()
        losses = [
            (real_or_not(critic(truth), real=True) + real_or_not(critic(answer), real=False)) / 2
            for critic, answer in zip(self.critics, self._answers, strict=True)
        ]
        total = torch.stack(losses).sum()
        return Loss(total, {"critics": total.detach() / 2})


def selected_cross_entropy(logits: Tensor, taught: Tensor, real: Tensor) -> Tensor:
    """Mean cross-entropy against probabilities, plus that of the voxels found ``real``, over all voxels."""
    loss = soft_cross_entropy(logits, taught)
    return loss.mean() + (loss * real).mean()


def real_or_not(verdict: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of a critic's logits."""
    verdict = verdict.float()
    target = torch.ones_like(verdict) if real else torch.zeros_like(verdict)
    return functional.binary_cross_entropy_with_logits(verdict, target)
