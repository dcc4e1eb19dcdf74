"""SS-Net: smoothness and class separation (Wu et al., MICCAI 2022).

Smoothness: the prediction must not change under the worst small perturbation of the input, L_adv = Dice(p(x + ε d),
sg p(x)), d the direction of steepest change (``perturbation.adversarial_direction``). Separation: voxel features of a
class are pulled to a bank of good labelled features of that class, mean (1 - cos(F_m, R_n)) a_m b_n, a and b learned
and normed to a mean of 1. L = Dice(z_L, y) + λ [L_adv + .1 (contrast_L + contrast_U)]; unlabelled voxels go by their
own argmax.

What deviates: the bank keeps the features that their selector ranks highest (the published code sorts the other way
round); the mean is over the classes there are; at most 4096 voxels of a class are looked at, because all of 96³ times
the bank do not fit; ε is a share of the patch's standard deviation, so that it means the same on other patches and on
0..1 as on z-scored volumes. Heads are for training alone. Cost 1.5 CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.experts import ExpertDecoder
from ...method.log_gap import Partition
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, option, plain_vnet
from .losses import agreement, soft_dice, square_dice
from .perturbation import adversarial_direction, frozen_statistics

_DROPOUT = 0.5
_BANK = 32
_VOXELS = 4096
_CONTRAST = 0.1


@dataclass(frozen=True)
class SSNetOptions:
    """The size of the perturbation."""

    radius: float = option(0.0106, "root mean square of the perturbation, in standard deviations of the patch")

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError("radius is above 0")


def _head(width: int, out: int, *, relu: nn.Module | None = None, inside: int | None = None) -> nn.Sequential:
    inside = inside or 2 * width
    return nn.Sequential(nn.Linear(width, inside), nn.BatchNorm1d(inside), relu or nn.ReLU(), nn.Linear(inside, out))


def contrast(features: Tensor, bank: Tensor, feature_scores: Tensor, bank_scores: Tensor) -> Tensor:
    """Weighed mean of 1 - cosine between ``features`` (M, width) and the ``bank`` (N, width); scores (M, 1), (N, 1)."""
    cosine = functional.normalize(features, dim=1) @ functional.normalize(bank, dim=1).T
    a = feature_scores.sigmoid()
    b = bank_scores.sigmoid()
    return ((1 - cosine) * (a / a.mean()) * (b / b.mean()).T).mean()


class SSNet(Strategy):
    """Adversarial smoothness, and class features pulled to a bank."""

    name: ClassVar[str] = "ss_net"
    Options: ClassVar[type[SSNetOptions]] = SSNetOptions
    own: SSNetOptions
    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups, dropout=_DROPOUT)
        width, channels = 2 * options.n_filters, self.network.out_channels
        self.projection = _head(options.n_filters, width)
        self.prediction = _head(width, width, inside=width)

        def selectors() -> nn.ModuleList:
            return nn.ModuleList(_head(width, 1, relu=nn.LeakyReLU(0.2), inside=width) for _ in range(channels))

        self.feature_selectors, self.bank_selectors = selectors(), selectors()
        self.bank: Tensor
        self.filled: Tensor
        self.register_buffer("bank", torch.zeros(channels, _BANK, width))
        self.register_buffer("filled", torch.zeros(channels, dtype=torch.long))

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled", "unlabelled", "smooth") if batch.unlabelled is not None else ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        weight = self.weight(step_state)
        if part == "labelled":
            logits, features = self.with_features(batch.volumes)
            supervised = square_dice(logits.softmax(dim=1), batch.labels)
            generator = self.random(step_state)
            self.fill_bank(features.detach(), batch.labels, logits.detach().argmax(dim=1), generator)
            pulled = self.pulled(features, batch.labels, generator)
            values = {"supervised": supervised.detach(), "contrast": pulled.detach()}
            return Loss(supervised + weight * _CONTRAST * pulled, values)
        assert batch.unlabelled is not None
        if part == "unlabelled":
            logits, features = self.with_features(batch.unlabelled)
            pulled = self.pulled(features, logits.detach().argmax(dim=1), self.random(step_state, 1))
            return Loss(weight * _CONTRAST * pulled, {"contrast_unlabelled": pulled.detach()})
        volumes = torch.cat([batch.volumes, batch.unlabelled])
        with frozen_statistics(self.network):
            with torch.no_grad():
                clean = self._probabilities(volumes)
            radius = self.own.radius * float(volumes.std()) * volumes[0].numel() ** 0.5
            direction = adversarial_direction(self._probabilities, volumes, clean, radius, self.random(step_state, 2))
            found = self._probabilities(volumes + (radius * direction).to(volumes.dtype))
        loss = soft_dice(found, clean)
        same = agreement(found.argmax(dim=1), clean.argmax(dim=1))
        return Loss(weight * loss, {"unsupervised": loss.detach(), "agreement": same})

    def with_features(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the features (batch, filters, depth, height, width) they are made of."""
        decoder: ExpertDecoder = self.network.experts[0]  # type: ignore[assignment]
        features = decoder.dropout(decoder(self.network.encoder(volumes)).features[-1])
        return decoder.head(features).float(), features.float()

    @torch.no_grad()
    def fill_bank(self, features: Tensor, labels: Tensor, predicted: Tensor, generator: torch.Generator) -> None:
        """Put into each organ's bank what the selector ranks highest of its rightly predicted voxels."""
        right = torch.where(labels == predicted, labels, 0)
        self.projection.eval()
        for label in range(1, len(self.bank)):
            found = _of_label(features, right, label, generator)
            if not len(found):
                continue
            projected = self.projection(found)
            if len(projected) > _BANK:
                selector = self.bank_selectors[label].eval()
                projected = projected[selector(projected)[:, 0].topk(_BANK).indices]
                selector.train()
            self.bank[label, : len(projected)] = projected
            self.filled[label] = len(projected)
        self.projection.train()

    def pulled(self, features: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The contrast of all organs that have both voxels and a bank; their mean."""
        losses = []
        for label in range(1, len(self.bank)):
            count = int(self.filled[label])
            found = _of_label(features, labels, label, generator)
            # Batch norm needs two.
            if count < 2 or len(found) < 2:
                continue
            bank = self.bank[label, :count].clone()
            vectors = self.prediction(self.projection(found))
            losses.append(
                contrast(vectors, bank, self.feature_selectors[label](vectors), self.bank_selectors[label](bank))
            )
        # Nothing to pull yet, but a part's loss must have a graph.
        return torch.stack(losses).mean() if losses else features[:0].sum()

    def _probabilities(self, volumes: Tensor) -> Tensor:
        return self.network(volumes).float().softmax(dim=1)


def _of_label(features: Tensor, labels: Tensor, label: int, generator: torch.Generator) -> Tensor:
    """Features (n, channel) of voxels with this label, a random 4096 where there are more."""
    places = (labels == label).nonzero()
    if len(places) > _VOXELS:
        places = places[torch.randperm(len(places), generator=generator)[:_VOXELS].to(places.device)]
    batch, z, y, x = places.unbind(dim=1)
    return features[batch, :, z, y, x]
