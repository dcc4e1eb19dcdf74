"""MagicNet: magic-cube partition and recovery (Chen et al., CVPR 2023).

Patches are divided into N³ cubes. "whole": z = f(x). "crossed": at each position, cubes are exchanged among labeled and
unlabeled patches; the features of the mixtures are moved back to their patches, and predicted from there (z_x).
"cubes": each cube passes through the network alone; its position is classified from its deepest features, and its
features are also assembled to patches (z_c).

L = 1/4 [ce(z_L) + Dice(z_L) + Dice(z_x_L) + Dice(z_c_L)] + .1 position + λ Dice(z_x_U, pseudo-label). With
``class_balance``, the run's loss (``losses.supervised_loss``) replaces the terms of the first bracket, with the same
weights; ``losses`` gradient_aware keeps its own. The pseudo-label is that of a teacher (EMA .99) on noisy patches. Once
the class distribution is known, it is blended with z_c voxel by voxel: argmax[(1 - ω) z_T + ω z_c], where ω is the
number of voxels of the teacher's class in the blended labels of the last 20 steps, divided by that of the largest
class.

Deviations: cubes are returned to their own position (the published code mirrors 18 of 27); ``blend`` "frequent" is the
code's weight, which lets the cubes decide the large classes, and "rare" is 1 - ω; the teacher has no position
classifier; "whole" passes labeled patches only, since unlabeled ones have no loss there; deepest features that are a
single voxel are normalized over their channels. Cost: 1.3 times CPS. The position classifier has 8.5 million weights
with 16 filters; it is used for training only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.experts import ExpertDecoder
from ...method.log_gap import Partition
from ...method.network import DCANet
from ...option_fields import option
from ..ema import compute_warmup_decay, update_teacher
from ..options import TrainingOptions
from .base import Batch, DatasetFingerprint, Loss, StepState, Strategy, build_vnet
from .class_statistics import count_voxels
from .ga import gradient_aware_cross_entropy, gradient_aware_dice_loss
from .losses import compute_agreement, squared_dice_loss, supervised_loss, voxel_loss
from .mixing import assemble_cubes, draw_permutations, split_into_cubes, swap_cubes, swap_cubes_back
from .perturbation import add_clipped_noise

_DECAY = 0.99
_PLACE_WEIGHT = 0.1
_DIVISOR = DCANet.divisor


@dataclass(frozen=True)
class MagicNetOptions:
    """Options of MagicNet."""

    cubes: int = option(3, "cubes along each side of a patch")
    blend: Literal["frequent", "rare"] = option("frequent", "the classes that the prediction from cubes decides")
    blend_from: int = option(100, "first step with a blended pseudo-label", minimum=0)
    losses: Literal["plain", "gradient_aware"] = option(
        "plain", "gradient_aware: MagicNet with the losses of --strategy ga"
    )

    def __post_init__(self) -> None:
        if self.cubes < 2:
            raise ValueError("cubes must be 2 or more")


class _VoxelNorm(nn.InstanceNorm3d):
    """Instance norm; of a single voxel, norm over its channels. It has the weights of instance norm."""

    def forward(self, features: Tensor) -> Tensor:
        if math.prod(features.shape[2:]) > 1:
            return super().forward(features)
        return functional.group_norm(features, 1, self.weight, self.bias, self.eps)


def blend_pseudo_labels(teacher: Tensor, from_cubes: Tensor, share: Tensor) -> Tensor:
    """Labels (batch, depth, height, width) of two blended maps of logits (batch, channel, depth, height, width).

    The weight of ``from_cubes`` at a voxel is the ``share`` (channel,) of the teacher's class.
    """
    weight = share[teacher.argmax(dim=1)][:, None]
    return ((1 - weight) * teacher + weight * from_cubes).argmax(dim=1)


class MagicNet(Strategy):
    """Learns from whole patches, exchanged cubes, and single cubes."""

    name: ClassVar[str] = "magicnet"
    Options: ClassVar[type[MagicNetOptions]] = MagicNetOptions
    own: MagicNetOptions
    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True
    _WINDOW = 20

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups)
        # The deepest features of a cube may be a single voxel.
        encoder = self.network.encoder
        for part in (encoder.downs[-1], encoder.blocks[-1]):
            assert isinstance(part, nn.Sequential)
            for index, layer in enumerate(part):
                if isinstance(layer, nn.InstanceNorm3d):
                    part[index] = _VoxelNorm(layer.num_features, affine=True)
        self.teacher: DCANet = copy.deepcopy(self.network).requires_grad_(False)
        count = self.strategy_options.cubes
        deepest = 16 * options.n_filters
        for side in options.patch:
            deepest *= side // (count * _DIVISOR)
        self.place = nn.Sequential(
            nn.Linear(deepest, 4096), nn.BatchNorm1d(4096), nn.LeakyReLU(0.2), nn.Linear(4096, count**3)
        )
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(self._WINDOW, self.network.out_channels))
        self._pseudo: Tensor | None = None

    @classmethod
    def require(cls, options: TrainingOptions, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.require``."""
        super().require(options, fingerprint)
        cls.require_grid(options, cls.parse_options(options).cubes, "cubes", _DIVISOR)

    @classmethod
    def adapt_options(cls, options: TrainingOptions) -> TrainingOptions:
        """Three or two cubes along each side, whichever divides the patch."""
        given = "cubes" in options.strategy_options
        for count in (cls.parse_options(options).cubes,) if given else (3, 2):
            if all(side % (count * _DIVISOR) == 0 for side in options.patch):
                return replace(options, strategy_options={"cubes": count, **options.strategy_options})
        return options

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("cubes", "whole", "crossed") if batch.unlabeled is not None else ("whole",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "whole":
            logits = self.network(batch.volumes).float()
            loss = self._compute_supervised_loss(
                logits, batch.labels, step_state, self._cross_entropy_and_dice, scale=2
            )
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabeled is not None
        labeled = len(batch.volumes)
        volumes = torch.cat([batch.volumes, batch.unlabeled])
        if loss_name == "cubes":
            return self._compute_cube_loss(volumes, batch.labels, step_state)
        order = draw_permutations(self.strategy_options.cubes**3, len(volumes), self.make_generator(step_state))
        mixture = assemble_cubes(swap_cubes(split_into_cubes(volumes, self.strategy_options.cubes), order))
        features = self._decoder(self.network.encoder(mixture)).features[-1]
        logits = self._apply_head(
            assemble_cubes(swap_cubes_back(split_into_cubes(features, self.strategy_options.cubes), order))
        )
        supervised = self._compute_supervised_loss(logits[:labeled], batch.labels, step_state, self._dice)
        assert self._pseudo is not None
        loss = self._dice(logits[labeled:], self._pseudo)
        same = compute_agreement(logits[labeled:].argmax(dim=1), self._pseudo)
        values = {"crossed": supervised.detach(), "unsupervised": loss.detach(), "agreement": same}
        return Loss(supervised + self.get_unsupervised_weight(step_state) * loss, values)

    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        update_teacher(self.teacher, self.network, compute_warmup_decay(step_state.step, _DECAY))

    @property
    def _decoder(self) -> ExpertDecoder:
        return self.network.experts[0]  # type: ignore[return-value]

    def _apply_head(self, features: Tensor) -> Tensor:
        return self._decoder.head(self._decoder.dropout(features)).float()

    def _compute_cube_loss(self, volumes: Tensor, labels: Tensor, step_state: StepState) -> Loss:
        """The loss of single cubes. Also computes the pseudo-label for the exchanged ones."""
        labeled = len(labels)
        parts = split_into_cubes(volumes, self.strategy_options.cubes)
        order = torch.randperm(len(parts) * len(volumes), generator=self.make_generator(step_state, 1)).to(
            volumes.device
        )
        # In random order, so that the classifier's batch norm cannot reveal a position by its neighbors.
        encoded = self.network.encoder(parts.flatten(0, 1)[order])
        places = torch.arange(len(parts), device=volumes.device).repeat_interleave(len(volumes))[order]
        place = functional.cross_entropy(self.place(encoded[-1].flatten(1)).float(), places)
        features = self._decoder(encoded).features[-1][order.argsort()]
        logits = self._apply_head(assemble_cubes(features.unflatten(0, parts.shape[:2])))
        self._pseudo = self._compute_pseudo_labels(volumes[labeled:], logits[labeled:].detach(), step_state)
        supervised = self._compute_supervised_loss(logits[:labeled], labels, step_state, self._dice)
        values = {"cubes": supervised.detach(), "place": place.detach()}
        return Loss(supervised + _PLACE_WEIGHT * place, values)

    @torch.no_grad()
    def _compute_pseudo_labels(self, unlabeled: Tensor, from_cubes: Tensor, step_state: StepState) -> Tensor:
        teacher = self.teacher(add_clipped_noise(unlabeled, self.make_generator(step_state, 2))).float()
        voxels = self.counts.sum(dim=0)
        if step_state.step >= self.strategy_options.blend_from and voxels.any():
            share = voxels / voxels.max()
            labels = blend_pseudo_labels(
                teacher, from_cubes, share if self.strategy_options.blend == "frequent" else 1 - share
            )
        else:
            labels = teacher.argmax(dim=1)
        self.counts[step_state.step % self._WINDOW] = count_voxels(labels, self.network.out_channels)
        return labels

    def _compute_supervised_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        step_state: StepState,
        published: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
    ) -> Tensor:
        """One of the supervised losses, with its published weight of a quarter for each of their four terms."""
        if self.strategy_options.losses == "gradient_aware":
            return published(logits, labels) / 4
        return supervised_loss(logits, labels, self.options, step_state, published, scale=scale) / 4

    def _cross_entropy_and_dice(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._cross_entropy(logits, labels) + self._dice(logits, labels)

    def _dice(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.strategy_options.losses == "gradient_aware":
            return gradient_aware_dice_loss(logits, labels)
        return squared_dice_loss(logits.softmax(dim=1), labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.strategy_options.losses == "gradient_aware":
            return gradient_aware_cross_entropy(logits, labels, share=0.1)
        return voxel_loss(logits, labels)
