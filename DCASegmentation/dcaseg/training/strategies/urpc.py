"""URPC: uncertainty rectified pyramid consistency (Luo et al., MICCAI 2021).

One network predicts at each of four decoder scales. All four learn from labels: L_sup = 1/(2S) Σ_s [ce(z_s, y) +
Dice(p_s, y)], or with ``class_balance`` the run's loss (``losses.supervised_loss``) of each scale. On unlabeled
patches, each scale is pulled toward the mean p̄ of all scales, less where the KL divergence U_s = Σ_c p̄ log(p̄ / p_s)
is large: mean_s { mean[(p̄ - p_s)² e^-U_s] / mean[e^-U_s] + mean[U_s] }.

Deviations: the backbone is the V-Net of the other methods, with dropout (1/2; none in networks with fewer than 16
filters) at the bottleneck and the last block, instead of a U-Net with dropout at each decoder level. The direction of
the divergence is that of the code. Three 1x1x1 heads are added, which are used for training only. Cost: 0.5 times CPS.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet, get_published_dropout
from .losses import compute_agreement, cross_entropy_and_square_dice, supervised_loss


def rectified_consistency(log_probabilities: list[Tensor]) -> Tensor:
    """The unsupervised loss of log-softmaxes (batch, channel, depth, height, width), one for each scale."""
    mean = torch.stack([scale.exp() for scale in log_probabilities]).mean(dim=0)
    log_mean = mean.clamp(min=1e-12).log()
    total = mean.new_zeros(())
    for scale in log_probabilities:
        uncertainty = (mean * (log_mean - scale)).sum(dim=1, keepdim=True)
        certainty = (-uncertainty).exp()
        distance = ((mean - scale.exp()) ** 2 * certainty).mean() / (certainty.mean() + 1e-8)
        total = total + distance + uncertainty.mean()
    return total / len(log_probabilities)


class URPC(Strategy):
    """A pyramid of predictions that agree with each other."""

    name: ClassVar[str] = "urpc"
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups, dropout=get_published_dropout(options))
        # For 1/8, 1/4 and 1/2 resolution; the head for full resolution is the network's.
        self.heads = nn.ModuleList(
            nn.Conv3d(options.n_filters * factor, self.network.out_channels, kernel_size=1) for factor in (8, 4, 2)
        )

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled", "unlabelled") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "labelled":
            scales = self.predict_pyramid(batch.volumes)
            losses = [
                supervised_loss(logits, batch.labels, self.options, step_state, cross_entropy_and_square_dice)
                for logits in scales
            ]
            loss = torch.stack(losses).mean()
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabeled is not None
        scales = self.predict_pyramid(batch.unlabeled)
        loss = rectified_consistency([functional.log_softmax(logits, dim=1) for logits in scales])
        same = compute_agreement(scales[0].argmax(dim=1), scales[-1].argmax(dim=1))
        return Loss(self.get_unsupervised_weight(step_state) * loss, {"unsupervised": loss.detach(), "agreement": same})

    def predict_pyramid(self, volumes: Tensor) -> list[Tensor]:
        """The logits of all scales, interpolated to full resolution; the coarsest scale comes first."""
        decoded = self.network.experts[0](self.network.encoder(volumes))
        coarse = [
            functional.interpolate(head(features).float(), volumes.shape[2:], mode="trilinear", align_corners=False)
            for head, features in zip(self.heads, decoded.features, strict=False)
        ]
        return [*coarse, decoded.logits.float()]
