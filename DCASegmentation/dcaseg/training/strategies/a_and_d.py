"""A&D: aggregating and decoupling (Wang and Li, NeurIPS 2023).

One encoder and three decoders. ξ denoises a diffused label map of a labeled patch, given the image. ψ segments labeled
patches, with class weights according to the difficulty of each class for ξ. θ, whose output is the result, learns from
unlabeled patches the labels argmax[G * gumbel-softmax(ξ after ten DDIM steps) + softmax(ψ)], and its weights follow the
mean of those of ξ and ψ (EMA, ``decay``). L = L(ξ(x_t, t, image_L), y) + L_w(ψ(image_L), y) + λ L(θ(image_U), label);
each term is weighted cross-entropy + foreground Dice. With ``class_balance``, twice the run's loss
(``losses.supervised_loss``) replaces the first, which is unweighted; the weights of the second are the method's own.

The diffusion follows Ho et al. 2020 and, for fewer steps without new noise (DDIM, eta 0), Song et al. 2021. A label map
is x0 = 2 one-hot - 1, (batch, channel, depth, height, width). It is computed in single precision.

Deviations: the time enters once per block of the encoder, not per convolution; the clean map that is passed back to the
diffusion is 2 softmax - 1, where the published code clips logits; the difficulty weights, which reach hundreds in the
published code, are divided by their maximum unless ``bounded`` is off; the augmentation has no rotation or scaling;
norm statistics are frozen during DDIM; the three decoders start from the same weights, and θ follows the mean more
slowly with AdamW (``base.choose_ema_decay``); networks with fewer than 16 filters have no dropout, others 1/2. Cost:
1.8 times CPS; in addition, x_t has a channel for each organ.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.experts import ExpertDecoder
from ...method.log_gap import Partition
from ...method.variants import PAPER_DILATIONS, VNET_N_STAGES
from ...method.vnet import ConvBlock, initialize_kaiming
from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet, choose_ema_decay, get_published_dropout
from .class_statistics import ClassDifficulty
from .losses import compute_agreement, supervised_loss, unweighted_loss, weighted_loss
from .perturbation import frozen_statistics, sample_normal, smooth

N_TIMESTEPS = 1000


def compute_alphas_cumprod(device: torch.device) -> Tensor:
    """ᾱ_t (1000,), the fraction of the clean map's variance that remains at time t; β increases linearly."""
    beta = torch.linspace(1e-4, 0.02, N_TIMESTEPS, dtype=torch.double)
    return (1 - beta).cumprod(dim=0).float().to(device)


def encode_labels(labels: Tensor, n_channels: int) -> Tensor:
    """x0 (batch, channel, depth, height, width) of labels (batch, depth, height, width)."""
    return 2 * functional.one_hot(labels, n_channels).movedim(-1, 1).float() - 1


def add_noise(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t of x0 (``clean``) and ``noise``, both (batch, channel, depth, height, width), at ``times`` (batch,)."""
    share = compute_alphas_cumprod(clean.device)[times].view(-1, 1, 1, 1, 1)
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def sample_ddim(predict: Callable[[Tensor, Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Denoise ``start`` in this number of DDIM steps; the result is x0.

    ``predict`` estimates x0, in -1 to 1, from x_t and times (batch,).
    """
    shares = compute_alphas_cumprod(start.device)
    times = torch.linspace(N_TIMESTEPS - 1, 0, steps).round().long().tolist()
    current, clean = start, start
    for time, following in zip(times, [*times[1:], None], strict=True):
        clean = predict(current, torch.full((len(start),), time, device=start.device)).clamp(-1, 1)
        if following is not None:
            noise = (current - shares[time].sqrt() * clean) / (1 - shares[time]).sqrt()
            current = shares[following].sqrt() * clean + (1 - shares[following]).sqrt() * noise
    return clean


class TimeEmbedding(nn.Module):
    """A vector (``width``) for each time: sines and cosines of 64 frequencies, then two linear layers."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, times: Tensor) -> Tensor:
        """Embed times (batch,) as (batch, width)."""
        frequencies = torch.exp(-math.log(10000) * torch.arange(64, device=times.device) / 63)
        angles = times.float()[:, None] * frequencies
        embedded: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded


# A Gaussian with a standard deviation of one voxel, on three voxels.
_GAUSSIAN = 0.548


@dataclass(frozen=True)
class ADOptions:
    """Options of A&D."""

    denoising_steps: int = option(10, "passes of the denoising decoder for a pseudo-label")
    bounded: bool = option(True, "divide difficulty weights by the largest")
    decay: float | None = option(
        None, "decay of the mean that θ follows; automatic: 0.99 with SGD, 0.999 with AdamW", minimum=0, below=1
    )

    def __post_init__(self) -> None:
        if not 1 <= self.denoising_steps <= N_TIMESTEPS:
            raise ValueError(f"denoising_steps must be from 1 to {N_TIMESTEPS}")


class AggregatingAndDecoupling(Strategy):
    """Three decoders; ``network`` is the encoder with θ."""

    name: ClassVar[str] = "a_and_d"
    Options: ClassVar[type[ADOptions]] = ADOptions
    own: ADOptions
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        dropout = get_published_dropout(options)
        self.network = build_vnet(options, groups, dropout=dropout)
        self.channels = self.network.out_channels
        filters = options.n_filters
        self.noised_input = ConvBlock(1 + self.channels, filters, 1, options.norm)
        self.time = TimeEmbedding()
        self.time_of_level = nn.ModuleList(nn.Linear(512, filters * 2**level) for level in range(5))

        def make_decoder() -> ExpertDecoder:
            return ExpertDecoder(
                filters, self.channels, options.norm, VNET_N_STAGES, PAPER_DILATIONS[1], dropout, options.upsampling
            )

        self.denoising = make_decoder()
        if options.initialization == "kaiming":
            for part in (self.noised_input, self.denoising):
                initialize_kaiming(part)
        # The mean of decoders with unrelated weights is no decoder.
        self.labelled = copy.deepcopy(self.denoising)
        self.network.experts[0].load_state_dict(self.denoising.state_dict())
        self._decay = choose_ema_decay(self.strategy_options.decay, options)
        self.difficulty = ClassDifficulty(self.channels, self.strategy_options.bounded)

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("denoising", "labelled", *(("unlabelled",) if batch.unlabeled is not None else ()))

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "denoising":
            return self._compute_denoising_loss(batch, step_state)
        if loss_name == "labelled":
            logits = self.labelled(self.network.encoder(batch.volumes)).logits.float()
            loss = weighted_loss(logits, batch.labels, self.difficulty.compute_weights())
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabeled is not None
        labels = self.compute_pseudo_labels(batch.unlabeled, step_state)
        logits = self.network(batch.unlabeled).float()
        loss = unweighted_loss(logits, labels)
        values = {"unsupervised": loss.detach(), "agreement": compute_agreement(logits.detach().argmax(dim=1), labels)}
        return Loss(self.get_unsupervised_weight(step_state) * loss, values)

    @torch.no_grad()
    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        triples = zip(
            self.network.experts[0].parameters(), self.denoising.parameters(), self.labelled.parameters(), strict=True
        )
        for average, one, other in triples:
            average.lerp_((one + other) / 2, 1 - self._decay)

    def denoise(self, volumes: Tensor, diffused: Tensor, times: Tensor) -> Tensor:
        """ξ's logits of the clean map, given the images ``volumes`` and x_t (``diffused``) at ``times`` (batch,)."""
        time = self.time(times)

        def embed_time(level: int) -> Tensor:
            embedded: Tensor = self.time_of_level[level](time)[:, :, None, None, None]
            return embedded

        encoder = self.network.encoder
        features = [self.noised_input(torch.cat([volumes, diffused.to(volumes.dtype)], dim=1)) + embed_time(0)]
        for level, (down, block) in enumerate(zip(encoder.downs, encoder.blocks[1:], strict=True), start=1):
            features.append(block(down(features[-1]) + embed_time(level)))
        features[-1] = encoder.dropout(features[-1])
        logits: Tensor = self.denoising(features).logits.float()
        return logits

    @torch.no_grad()
    def compute_pseudo_labels(self, volumes: Tensor, step_state: StepState) -> Tensor:
        """Pseudo-labels (batch, depth, height, width) of unlabeled patches by ξ and ψ together."""
        generator = self.make_generator(step_state, 1)
        start = sample_normal((len(volumes), self.channels, *volumes.shape[2:]), generator, volumes)
        last_logits = [start]

        def predict(diffused: Tensor, times: Tensor) -> Tensor:
            last_logits[0] = self.denoise(volumes, diffused, times)
            return 2 * last_logits[0].softmax(dim=1) - 1

        with frozen_statistics(self):
            sample_ddim(predict, start, self.strategy_options.denoising_steps)
            plain = self.labelled(self.network.encoder(volumes)).logits.float().softmax(dim=1)
        uniform = torch.rand(start.shape, generator=generator).to(start.device).clamp(1e-9, 1 - 1e-7)
        gumbel = (last_logits[0] - (-uniform.log()).log()).softmax(dim=1)
        return (smooth(gumbel, _GAUSSIAN) + plain).argmax(dim=1)

    def _compute_denoising_loss(self, batch: Batch, step_state: StepState) -> Loss:
        generator = self.make_generator(step_state)
        times = torch.randint(N_TIMESTEPS, (len(batch.volumes),), generator=generator).to(batch.volumes.device)
        clean = encode_labels(batch.labels, self.channels)
        diffused = add_noise(clean, sample_normal(clean.shape, generator, clean), times)
        logits = self.denoise(batch.volumes, diffused, times)
        self.difficulty.observe(logits.detach().argmax(dim=1), batch.labels)
        loss = supervised_loss(logits, batch.labels, self.options, step_state, unweighted_loss, scale=2)
        return Loss(loss, {"denoising": loss.detach()})
