"""URPC: uncertainty rectified pyramid consistency (Luo et al., MICCAI 2021).

One network that predicts at each of four decoder scales. Labels teach all four: L_sup = 1/(2S) Σ_s [ce(z_s, y) +
Dice(p_s, y)]. On unlabelled patches each scale is pulled to the mean p̄ of all, less where it differs from it by the
KL divergence U_s = Σ_c p̄ log(p̄ / p_s): mean_s { mean[(p̄ - p_s)² e^-U_s] / mean[e^-U_s] + mean[U_s] }.

What deviates: the backbone is the V-Net of all rows, with its dropout (1/2) at the bottleneck and the last block in
place of the U-Net's at each decoder level. The direction of the divergence is the code's. Three heads of 1x1x1 are
added, which only training uses. Cost .5 CPS.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, plain_vnet
from .losses import agreement, cross_entropy_and_square_dice

_DROPOUT = 0.5


def rectified_consistency(log_probabilities: list[Tensor]) -> Tensor:
    """The unsupervised loss of log-softmaxes (batch, channel, depth, height, width), one for each scale."""
    mean = torch.stack([one.exp() for one in log_probabilities]).mean(dim=0)
    log_mean = mean.clamp(min=1e-12).log()
    total = mean.new_zeros(())
    for one in log_probabilities:
        uncertainty = (mean * (log_mean - one)).sum(dim=1, keepdim=True)
        certainty = (-uncertainty).exp()
        distance = ((mean - one.exp()) ** 2 * certainty).mean() / (certainty.mean() + 1e-8)
        total = total + distance + uncertainty.mean()
    return total / len(log_probabilities)


class URPC(Strategy):
    """A pyramid of predictions that agree with each other."""

    name: ClassVar[str] = "urpc"
    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups, dropout=_DROPOUT)
        # Of 1/8, 1/4 and 1/2 resolution; the network has its own of the full one.
        self.heads = nn.ModuleList(
            nn.Conv3d(options.n_filters * factor, self.network.out_channels, kernel_size=1) for factor in (8, 4, 2)
        )

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled", "unlabelled") if batch.unlabelled is not None else ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        if part == "labelled":
            scales = self.pyramid(batch.volumes)
            losses = [cross_entropy_and_square_dice(logits, batch.labels) for logits in scales]
            loss = torch.stack(losses).mean()
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabelled is not None
        scales = self.pyramid(batch.unlabelled)
        loss = rectified_consistency([functional.log_softmax(logits, dim=1) for logits in scales])
        same = agreement(scales[0].argmax(dim=1), scales[-1].argmax(dim=1))
        return Loss(self.weight(step_state) * loss, {"unsupervised": loss.detach(), "agreement": same})

    def pyramid(self, volumes: Tensor) -> list[Tensor]:
        """Logits of all scales at full size, the coarsest first."""
        decoded = self.network.experts[0](self.network.encoder(volumes))
        coarse = [
            functional.interpolate(head(features).float(), volumes.shape[2:], mode="trilinear", align_corners=False)
            for head, features in zip(self.heads, decoded.features, strict=False)
        ]
        return [*coarse, decoded.logits.float()]
