"""SS-Net: smoothness and class separation (Wu et al., MICCAI 2022).

Smoothness: the prediction should not change under the worst small perturbation of the input. L_adv = Dice(p(x + ε d),
sg p(x)), where d is the direction of the steepest change (``perturbation.compute_adversarial_direction``). Separation:
voxel features of a class are pulled toward a bank of good labeled features of that class: mean (1 - cos(F_m, R_n)) a_m
b_n, where a and b are learned and normalized to a mean of 1. L = Dice(z_L, y) + λ [L_adv + .1 (contrast_L +
contrast_U)]. Unlabeled voxels belong to the class of their own argmax. With ``class_balance``, the run's loss
(``losses.supervised_loss``) replaces Dice(z_L, y).

Deviations: the bank keeps the features with the highest scores of their selector (the published code sorts in the
opposite order); the mean is over the classes that are present; at most 4096 voxels of a class are used, because the
product of 96³ voxels and the bank does not fit into memory; ε is relative to the patch's standard deviation, so that it
has the same meaning for other patches, and for intensities from 0 to 1 as for z-scores; the two predictions of L_adv
are without dropout (the published code draws a mask for each, and their difference is then mostly that of the masks);
networks with fewer than 16 filters have no dropout, others 1/2. The heads are used for training only. Cost: 1.5 times
CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.experts import ExpertDecoder
from ...method.log_gap import Partition
from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet, get_published_dropout
from .losses import compute_agreement, soft_dice_loss, squared_dice_loss, supervised_loss
from .perturbation import compute_adversarial_direction, frozen_statistics, without_dropout

_BANK = 32
_VOXELS = 4096
_CONTRAST = 0.1


@dataclass(frozen=True)
class SSNetOptions:
    """Options of SS-Net."""

    radius: float = option(0.0106, "root mean square of the perturbation, in standard deviations of the patch")

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError("radius must be above 0")


def _make_head(width: int, out: int, *, relu: nn.Module | None = None, inside: int | None = None) -> nn.Sequential:
    inside = inside or 2 * width
    return nn.Sequential(nn.Linear(width, inside), nn.BatchNorm1d(inside), relu or nn.ReLU(), nn.Linear(inside, out))


def compute_weighted_cosine_distance(
    features: Tensor, bank: Tensor, feature_scores: Tensor, bank_scores: Tensor
) -> Tensor:
    """The weighted mean of 1 - cosine similarity between ``features`` (M, width) and the ``bank`` (N, width).

    The scores are (M, 1) and (N, 1).
    """
    cosine = functional.normalize(features, dim=1) @ functional.normalize(bank, dim=1).T
    a = feature_scores.sigmoid()
    b = bank_scores.sigmoid()
    return ((1 - cosine) * (a / a.mean()) * (b / b.mean()).T).mean()


class SSNet(Strategy):
    """Adversarial smoothness, and class features that are pulled toward a bank."""

    name: ClassVar[str] = "ss_net"
    Options: ClassVar[type[SSNetOptions]] = SSNetOptions
    own: SSNetOptions
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups, dropout=get_published_dropout(options))
        width, channels = 2 * options.n_filters, self.network.out_channels
        self.projection = _make_head(options.n_filters, width)
        self.prediction = _make_head(width, width, inside=width)

        def make_selectors() -> nn.ModuleList:
            return nn.ModuleList(_make_head(width, 1, relu=nn.LeakyReLU(0.2), inside=width) for _ in range(channels))

        self.feature_selectors, self.bank_selectors = make_selectors(), make_selectors()
        self.bank: Tensor
        self.filled: Tensor
        self.register_buffer("bank", torch.zeros(channels, _BANK, width))
        self.register_buffer("filled", torch.zeros(channels, dtype=torch.long))

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled", "unlabelled", "smooth") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        weight = self.get_unsupervised_weight(step_state)
        if loss_name == "labelled":
            logits, features = self.predict_with_features(batch.volumes)
            supervised = supervised_loss(logits, batch.labels, self.options, step_state, _dice)
            generator = self.make_generator(step_state)
            self.fill_bank(features.detach(), batch.labels, logits.detach().argmax(dim=1), generator)
            contrast_loss = self.contrast_loss(features, batch.labels, generator)
            values = {"supervised": supervised.detach(), "contrast": contrast_loss.detach()}
            return Loss(supervised + weight * _CONTRAST * contrast_loss, values)
        assert batch.unlabeled is not None
        if loss_name == "unlabelled":
            logits, features = self.predict_with_features(batch.unlabeled)
            contrast_loss = self.contrast_loss(
                features, logits.detach().argmax(dim=1), self.make_generator(step_state, 1)
            )
            return Loss(weight * _CONTRAST * contrast_loss, {"contrast_unlabelled": contrast_loss.detach()})
        volumes = torch.cat([batch.volumes, batch.unlabeled])
        with frozen_statistics(self.network), without_dropout(self.network):
            with torch.no_grad():
                clean = self._predict_probabilities(volumes)
            radius = self.strategy_options.radius * float(volumes.std()) * volumes[0].numel() ** 0.5
            direction = compute_adversarial_direction(
                self._predict_probabilities, volumes, clean, radius, self.make_generator(step_state, 2)
            )
            perturbed = self._predict_probabilities(volumes + (radius * direction).to(volumes.dtype))
        loss = soft_dice_loss(perturbed, clean)
        same = compute_agreement(perturbed.argmax(dim=1), clean.argmax(dim=1))
        return Loss(weight * loss, {"unsupervised": loss.detach(), "agreement": same})

    def predict_with_features(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the features (batch, filters, depth, height, width) from which the head computes them."""
        decoder: ExpertDecoder = self.network.experts[0]  # type: ignore[assignment]
        features = decoder.dropout(decoder(self.network.encoder(volumes)).features[-1])
        return decoder.head(features).float(), features.float()

    @torch.no_grad()
    def fill_bank(self, features: Tensor, labels: Tensor, predicted: Tensor, generator: torch.Generator) -> None:
        """Store, for each organ, the features of correctly predicted voxels with the highest selector scores."""
        correct = torch.where(labels == predicted, labels, 0)
        self.projection.eval()
        for label in range(1, len(self.bank)):
            of_label = _sample_label_features(features, correct, label, generator)
            if not len(of_label):
                continue
            projected = self.projection(of_label)
            if len(projected) > _BANK:
                selector = self.bank_selectors[label].eval()
                projected = projected[selector(projected)[:, 0].topk(_BANK).indices]
                selector.train()
            self.bank[label, : len(projected)] = projected
            self.filled[label] = len(projected)
        self.projection.train()

    def contrast_loss(self, features: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The mean ``compute_weighted_cosine_distance`` over the organs that have both voxels and a bank."""
        losses = []
        for label in range(1, len(self.bank)):
            count = int(self.filled[label])
            of_label = _sample_label_features(features, labels, label, generator)
            # Batch norm needs at least two.
            if count < 2 or len(of_label) < 2:
                continue
            bank = self.bank[label, :count].clone()
            vectors = self.prediction(self.projection(of_label))
            losses.append(
                compute_weighted_cosine_distance(
                    vectors, bank, self.feature_selectors[label](vectors), self.bank_selectors[label](bank)
                )
            )
        # Even if there is no organ yet, the loss must have a graph.
        return torch.stack(losses).mean() if losses else features[:0].sum()

    def _predict_probabilities(self, volumes: Tensor) -> Tensor:
        return self.network(volumes).float().softmax(dim=1)


def _dice(logits: Tensor, labels: Tensor) -> Tensor:
    return squared_dice_loss(logits.softmax(dim=1), labels)


def _sample_label_features(features: Tensor, labels: Tensor, label: int, generator: torch.Generator) -> Tensor:
    """The features (n, channel) of voxels with this label, or of 4096 random ones if there are more."""
    indices = (labels == label).nonzero()
    if len(indices) > _VOXELS:
        indices = indices[torch.randperm(len(indices), generator=generator)[:_VOXELS].to(indices.device)]
    batch, z, y, x = indices.unbind(dim=1)
    return features[batch, :, z, y, x]
