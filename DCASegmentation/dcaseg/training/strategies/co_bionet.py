"""Co-BioNet: uncertainty-guided dual views (Peiris et al., Nature Machine Intelligence 2023).

Two networks and two critics. A critic D learns, voxel by voxel, to distinguish a prediction from a true label map. A
network learns from the other's probabilities, more where the other's critic considers them real, and to convince its
own critic: L_1 = ce(z_1, y) + Dice + λ [mean ce(p_1, p_2) + mean 1[D_2(p_2) > T] ce(p_1, p_2) + μ BCE(D_1(p_1), 1)].
The critic's loss is 1/2 [BCE(D_1(one-hot y), 1) + BCE(D_1(p_1), 0)]. With ``class_balance``, twice the run's loss
(``losses.supervised_loss``) replaces ce + Dice on labels.

The published code does something else: no gradient reaches its critics (detached losses), the first cross term has no
graph, and the mask multiplies a mean, so it selects nothing. Ours implements the equations above, with a softmax over
organs instead of one sigmoid, and without an activation at the critic's output: after the published leaky ReLU, a
sigmoid is rarely below .45, so a threshold of .2 would reject nothing. The result is the networks' mean softmax, not
the intersection of binary masks. Critics learn at ``critic_factor`` of the learning rate. Cost: as CPS (twice in the
published code), plus the critics, which have 64 channels at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ...method.log_gap import Partition
from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, Loss, MeanOfNetworks, ParameterGroup, ScoredNetwork, StepState, Strategy, build_vnet
from .losses import compute_agreement, squared_dice_loss, supervised_loss, voxel_loss


@dataclass(frozen=True)
class CoBioNetOptions:
    """Options of Co-BioNet, with the published values for the pancreas, the closest to our task."""

    threshold: float = option(0.2, "T: how real a voxel must be for the other's critic", minimum=0, maximum=1)
    adversarial: float = option(0.01, "μ: weight of convincing the critic", minimum=0)
    critic_factor: float = option(0.1, "the critics' learning rate as a fraction of the networks'", above=0)


class Critic(nn.Sequential):
    """Rates how real each voxel of a probability map is.

    Probabilities (batch, channel, depth, height, width) become logits (batch, 1, depth, height, width).
    """

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for before, after in ((channels, 16), (16, 32), (32, 64)):
            layers += [nn.Conv3d(before, after, kernel_size=1), nn.BatchNorm3d(after), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv3d(64, 1, kernel_size=1))


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each voxel (batch, depth, height, width) with target probabilities.

    ``logits`` and ``target`` are (batch, channel, depth, height, width).
    """
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)


class CoBioNet(Strategy):
    """Two networks that teach each other, more where a critic considers the pseudo-labels real."""

    name: ClassVar[str] = "co_bionet"
    Options: ClassVar[type[CoBioNetOptions]] = CoBioNetOptions
    own: CoBioNetOptions
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network, self.second = build_vnet(options, groups), build_vnet(options, groups)
        self.critics = nn.ModuleList(Critic(self.network.out_channels) for _ in range(2))
        self._probabilities: list[Tensor] = []

    def get_validated_network(self) -> ScoredNetwork:
        """See ``Strategy.get_validated_network``."""
        return MeanOfNetworks([self.network, self.second], mean_of="probabilities")

    def get_parameter_groups(self) -> list[ParameterGroup]:
        """See ``Strategy.get_parameter_groups``."""
        networks = [*self.network.parameters(), *self.second.parameters()]
        return [
            ParameterGroup(networks),
            ParameterGroup(list(self.critics.parameters()), self.strategy_options.critic_factor),
        ]

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("networks", "critics")

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        return (
            self._compute_network_loss(batch, step_state)
            if loss_name == "networks"
            else self._compute_critic_loss(batch)
        )

    def _compute_network_loss(self, batch: Batch, step_state: StepState) -> Loss:
        labeled = len(batch.volumes)
        volumes = batch.volumes if batch.unlabeled is None else torch.cat([batch.volumes, batch.unlabeled])
        logits = [self.network(volumes).float(), self.second(volumes).float()]
        probabilities = [each.softmax(dim=1) for each in logits]
        self._probabilities = [each.detach() for each in probabilities]
        of_labeled = [
            supervised_loss(each[:labeled], batch.labels, self.options, step_state, published_loss, scale=2)
            for each in logits
        ]
        supervised = torch.stack(of_labeled).sum()
        values = {"supervised": supervised.detach() / 2}
        if batch.unlabeled is None:
            return Loss(supervised, values)
        crossed, adversarial, real_share = supervised.new_zeros(()), supervised.new_zeros(()), supervised.new_zeros(())
        for which in (0, 1):
            target = self._probabilities[1 - which][labeled:]
            with torch.no_grad():
                real = self.critics[1 - which](target).float().sigmoid()[:, 0] > self.strategy_options.threshold
            crossed = crossed + selected_cross_entropy(logits[which][labeled:], target, real)
            real_share = real_share + real.float().mean() / 2
            # Detached, because this loss must not train the critic.
            frozen = {name: parameter.detach() for name, parameter in self.critics[which].named_parameters()}
            critic_logits: Tensor = functional_call(self.critics[which], frozen, (probabilities[which],))
            adversarial = adversarial + critic_loss(critic_logits, real=True)
        total = supervised + self.get_unsupervised_weight(step_state) * (
            crossed + self.strategy_options.adversarial * adversarial
        )
        values["unsupervised"] = crossed.detach()
        values["certain"] = real_share
        labels = [each[labeled:].argmax(dim=1) for each in self._probabilities]
        return Loss(total, {**values, "adversarial": adversarial.detach(), "agreement": compute_agreement(*labels)})

    def _compute_critic_loss(self, batch: Batch) -> Loss:
        channels = self.network.out_channels
        truth = functional.one_hot(batch.labels, channels).movedim(-1, 1).float()
        losses = [
            (critic_loss(critic(truth), real=True) + critic_loss(critic(predicted), real=False)) / 2
            for critic, predicted in zip(self.critics, self._probabilities, strict=True)
        ]
        total = torch.stack(losses).sum()
        return Loss(total, {"critics": total.detach() / 2})


def published_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The published loss on labels: cross-entropy + ``squared_dice_loss``."""
    return voxel_loss(logits, labels) + squared_dice_loss(logits.softmax(dim=1), labels)


def selected_cross_entropy(logits: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """The mean of ``soft_cross_entropy`` over all voxels, plus the mean of its product with the mask ``real``.

    ``real`` is boolean (batch, depth, height, width).
    """
    loss = soft_cross_entropy(logits, target)
    return loss.mean() + (loss * real).mean()


def critic_loss(critic_logits: Tensor, real: bool) -> Tensor:
    """The binary cross-entropy of a critic's logits with the target 1 (``real``) or 0."""
    critic_logits = critic_logits.float()
    target = torch.ones_like(critic_logits) if real else torch.zeros_like(critic_logits)
    return functional.binary_cross_entropy_with_logits(critic_logits, target)
