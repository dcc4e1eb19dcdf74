"""The common base of BCP, ABD and β-FFT: two stages, and bidirectional copy-paste between halves of a batch.

In the first stage ("pretraining"), the networks learn from labeled patches pasted into each other. The second stage
("self_training") starts with a teacher that is a copy of the first network, and pastes labeled and unlabeled patches
into each other: in = l_a M + u_a (1 - M), out = u_b M + l_b (1 - M), where the mask M is false in a box, and l and u
are labeled and unlabeled patches of the halves a and b of the batch.

The losses on true labels and on mixtures are those of ``losses.supervised_loss``: with ``class_balance``, the run's
segmentation loss, in each region of a mixture. The first stage takes 2000 steps, as BCP's on the left atrium, but at
least 11.8 % and at most half of the run (``pretraining``). Learning rate, class balance, optimizer and averaged weights
have one schedule over both stages: with one each, the first stage would end at a learning rate of 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import SimpleITK as sitk
import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.network import DCANet
from ...option_fields import option
from ..ema import update_teacher
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet
from .losses import compute_agreement, cross_entropy_and_square_dice, region_loss, squared_dice_loss, supervised_loss
from .mixing import make_box_mask, paste
from .perturbation import augment_strongly
from .stages import Stages

_TEACHER_DECAY = 0.99
# BCP's, of 17,000 steps in total. In a short run, the same share would end before the network finds any organ, and the
# second stage would learn from such a teacher.
_PRETRAINING_STEPS = 2000
# Their share, which earlier versions used in runs of any length.
_PRETRAINING_SHARE = 0.118
_STAGES = ("pretraining", "self_training")


@dataclass(frozen=True)
class CopyPasteOptions:
    """Options of the two stages."""

    pretraining: float | None = option(
        None, "fraction of the steps that use labeled patches only; automatic: that of 2000 steps, from 0.118 to 0.5"
    )
    box: float = option(2 / 3, "side of the pasted box as a fraction of the patch's side")
    pseudo_weight: float = option(
        0.5, "weight of voxels with the teacher's labels, relative to labeled ones", minimum=0
    )
    largest_part: bool = option(
        False, "keep only the largest component of each organ in pseudo-labels; harms paired organs"
    )

    def compute_first_steps(self, steps: int) -> list[int]:
        """The first steps of the two stages in a run of ``steps``."""
        share = min(max(_PRETRAINING_SHARE, _PRETRAINING_STEPS / steps), 0.5)
        return [0, round((share if self.pretraining is None else self.pretraining) * steps)]

    def __post_init__(self) -> None:
        if not (0 <= (self.pretraining or 0) < 1 and 0 < self.box < 1):
            raise ValueError("pretraining must be from 0 to below 1, and box above 0 and below 1")


class MixedPatches(NamedTuple):
    """Mixtures of patches from two sources, with their labels.

    ``volumes`` are (batch, 1, depth, height, width), ``labels`` (batch, depth, height, width). ``mask`` (depth, height,
    width) is true where the voxels come from the first source.
    """

    volumes: Tensor
    labels: Tensor
    mask: Tensor


def paste_with_labels(outside: tuple[Tensor, Tensor], inside: tuple[Tensor, Tensor], mask: Tensor) -> MixedPatches:
    """Paste the volumes and labels of ``inside`` into those of ``outside`` where ``mask`` is false."""
    mask = mask.to(outside[0].device)
    return MixedPatches(paste(outside[0], inside[0], mask), paste(outside[1], inside[1], mask), mask)


class CopyPaste(Strategy):
    """The two stages. A subclass defines the losses of the second one."""

    needs_unlabeled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = True
    Options: ClassVar[type[CopyPasteOptions]] = CopyPasteOptions
    own: CopyPasteOptions

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups)
        self.teacher: DCANet = copy.deepcopy(self.network).requires_grad_(False)
        self.stages = Stages(self.strategy_options.compute_first_steps, options.steps)

    @property
    def students(self) -> list[DCANet]:
        """All networks that learn from losses."""
        return [self.network]

    def get_step_state(self, step: int) -> StepState:
        """See ``Strategy.get_step_state``."""
        # Only the losses have stages. Learning rate and class balance decrease once, over the whole run.
        number = self.stages.get_stage(step, self.options.steps)[0]
        return StepState(step, _STAGES[number], step, self.options.steps)

    def resume(self, step: int, saved: TrainingOptions, stored: Mapping[str, Tensor]) -> None:
        """See ``Strategy.resume``."""
        share = _PRETRAINING_SHARE if self.strategy_options.pretraining is None else self.strategy_options.pretraining
        earlier = [0, round(share * saved.steps)]
        self.stages.resume(step, saved.steps, self.options.steps, stored, earlier)

    def on_step_start(self, step_state: StepState, averaged: DCANet | None) -> bool:
        """At the first step of self-training, load the averaged weights, and copy the network to the teacher."""
        if step_state.step == int(self.stages.first_steps[1]):
            if averaged is not None and step_state.step:
                self.network.load_state_dict(averaged.state_dict())
            self.teacher.load_state_dict(self.network.state_dict())
        return False

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """Constant in self-training, since the papers have no ramp; 0 in pretraining."""
        return self.options.unsupervised_weight if step_state.stage == "self_training" else 0.0

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        pretraining = step_state.stage == "pretraining" or batch.unlabeled is None
        return ("pretraining",) if pretraining else self.list_self_training_losses()

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "pretraining":
            return self._compute_pretraining_loss(batch, step_state)
        assert batch.unlabeled is not None
        return self.compute_self_training_loss(loss_name, batch, batch.unlabeled, step_state)

    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        if step_state.stage == "self_training":
            update_teacher(self.teacher, self.network, _TEACHER_DECAY)

    def list_self_training_losses(self) -> tuple[str, ...]:
        """The names of the second stage's losses, in the order in which they are computed."""
        raise NotImplementedError

    def compute_self_training_loss(
        self, loss_name: str, batch: Batch, unlabeled: Tensor, step_state: StepState
    ) -> Loss:
        """Compute the loss of the second stage with this name."""
        raise NotImplementedError

    def draw_box_mask(self, volumes: Tensor, step_state: StepState) -> Tensor:
        """The step's mask (depth, height, width), for all patches."""
        return make_box_mask(volumes.shape[2:], self.strategy_options.box, self.make_generator(step_state))

    def make_mixtures(
        self, labeled: tuple[Tensor, Tensor], unlabeled: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[MixedPatches, MixedPatches]:
        """The mixtures "in" and "out" of volumes and labels, each of half a batch."""
        half = len(labeled[0]) // 2
        first = [(volumes[:half], labels[:half]) for volumes, labels in (labeled, unlabeled)]
        second = [(volumes[half:], labels[half:]) for volumes, labels in (labeled, unlabeled)]
        return paste_with_labels(first[0], first[1], mask), paste_with_labels(second[1], second[0], mask)

    @torch.no_grad()
    def compute_pseudo_labels(self, volumes: Tensor) -> Tensor:
        """The teacher's labels (batch, depth, height, width)."""
        labels = self.teacher(volumes).argmax(dim=1)
        return keep_largest_components(labels) if self.strategy_options.largest_part else labels

    def compute_mixture_losses(
        self, network: Callable[[Tensor], Tensor], pair: tuple[MixedPatches, MixedPatches], step_state: StepState
    ) -> tuple[Tensor, Tensor]:
        """BCP's loss of a network on both mixtures, and its logits on them, "in" first."""
        weight = self.strategy_options.pseudo_weight
        logits = network(torch.cat([mixture.volumes for mixture in pair])).float()
        half = len(pair[0].volumes)
        inward = self.mixture_loss(logits[:half], pair[0], step_state, 1.0, weight)
        return inward + self.mixture_loss(logits[half:], pair[1], step_state, weight, 1.0), logits

    def mixture_loss(
        self, logits: Tensor, mixture: MixedPatches, step_state: StepState, outside: float, inside: float
    ) -> Tensor:
        """The sum of the losses in the two regions of a mixture, with the weights ``outside`` and ``inside``."""
        of_regions = [
            supervised_loss(logits, mixture.labels, self.options, step_state, region_loss, region)
            for region in (mixture.mask, ~mixture.mask)
        ]
        return outside * of_regions[0] + inside * of_regions[1]

    def _compute_pretraining_loss(self, batch: Batch, step_state: StepState) -> Loss:
        half = len(batch.volumes) // 2
        one, other = (batch.volumes[:half], batch.labels[:half]), (batch.volumes[half:], batch.labels[half:])
        box = self.draw_box_mask(batch.volumes, step_state)
        pair = paste_with_labels(one, other, box), paste_with_labels(other, one, box)
        volumes, labels = torch.cat([pair[0].volumes, pair[1].volumes]), torch.cat([pair[0].labels, pair[1].labels])
        everywhere = torch.ones_like(pair[0].mask)
        losses = [
            supervised_loss(student(volumes), labels, self.options, step_state, region_loss, everywhere)
            for student in self.students
        ]
        loss = torch.stack(losses).sum()
        return Loss(loss, {"supervised": loss.detach() / len(losses)})


def keep_largest_components(labels: Tensor) -> Tensor:
    """Keep only the largest connected component of each label in label maps (batch, depth, height, width)."""
    results = []
    for label_map in labels.cpu():
        result = torch.zeros_like(label_map)
        for label in label_map.unique().tolist():
            if label:
                mask = sitk.GetImageFromArray((label_map == label).numpy().astype("uint8"))
                components = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
                result[torch.from_numpy(sitk.GetArrayFromImage(components).astype("int64")) == 1] = label
        results.append(result)
    return torch.stack(results).to(labels.device)


class TwoStudents(CopyPaste):
    """Copy-paste with a second network, which learns from a strong view. The teacher follows the first network."""

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.second = build_vnet(options, groups)
        # Both views of the last patches, with the networks' probabilities, for a later loss of the step.
        self.views: list[tuple[Tensor, Tensor]] = []

    @property
    def students(self) -> list[DCANet]:
        """See ``CopyPaste.students``."""
        return [self.network, self.second]

    def on_mixtures(self, batch: Batch, unlabeled: Tensor, step_state: StepState) -> Loss:
        """BCP's losses of both networks, each on the mixtures of its own view, and Dice with the other's labels."""
        mask = self.draw_box_mask(unlabeled, step_state)
        labeled_views = (batch.volumes, augment_strongly(batch.volumes, self.make_generator(step_state, 1)))
        unlabeled_views = (unlabeled, augment_strongly(unlabeled, self.make_generator(step_state, 2)))
        total, logits, volumes = unlabeled.new_zeros(()), [], []
        for student, labeled, view in zip(self.students, labeled_views, unlabeled_views, strict=True):
            pair = self.make_mixtures((labeled, batch.labels), (view, self.compute_pseudo_labels(view)), mask)
            loss, student_logits = self.compute_mixture_losses(student, pair, step_state)
            total = total + loss
            logits.append(student_logits)
            volumes.append(torch.cat([mixture.volumes for mixture in pair]))
        self.keep(volumes, logits)
        crossed = self.compute_cross_supervision_loss(logits, 1.0)
        return Loss(total + crossed.total, {"supervised": total.detach() / 2, **crossed.values})

    def compute_supervised_loss(self, logits: Tensor, labels: Tensor, step_state: StepState) -> Tensor:
        """The loss of a network on patches without pseudo-labels."""
        return supervised_loss(logits, labels, self.options, step_state, cross_entropy_and_square_dice)

    def keep(self, volumes: Sequence[Tensor], logits: Sequence[Tensor]) -> None:
        """Store both views, and the networks' probabilities on them."""
        self.views = [(view, output.detach().softmax(dim=1)) for view, output in zip(volumes, logits, strict=True)]

    @staticmethod
    def compute_cross_supervision_loss(logits: Sequence[Tensor], weight: float) -> Loss:
        """The Dice loss of both networks with each other's labels."""
        labels = [output.detach().argmax(dim=1) for output in logits]
        loss = squared_dice_loss(logits[0].softmax(dim=1), labels[1]) + squared_dice_loss(
            logits[1].softmax(dim=1), labels[0]
        )
        return Loss(weight * loss, {"unsupervised": loss.detach(), "agreement": compute_agreement(*labels)})
