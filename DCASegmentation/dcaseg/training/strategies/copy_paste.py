"""What BCP, ABD and β-FFT share: two stages, halves of a batch, and bidirectional copy-paste.

In the first stage ("pretraining") the networks learn from labelled patches pasted into each other. Then a teacher
starts as a copy of the first network, and "self_training" pastes labelled and unlabelled patches into each other:
with a mask M that is false in a box, in = l_a M + u_a (1 - M), out = u_b M + l_b (1 - M), l and u labelled and
unlabelled halves a, b.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import SimpleITK as sitk
import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.network import DCANet
from ..ema import update_teacher
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, option, plain_vnet
from .losses import agreement, region_loss, square_dice
from .mixing import box_mask, pasted
from .perturbation import strong_view

_TEACHER_DECAY = 0.99


@dataclass(frozen=True)
class CopyPasteOptions:
    """Constants of the two stages."""

    pretraining: float = option(0.118, "share of the steps on labelled patches alone")
    box: float = option(2 / 3, "side of the pasted box as a share of the patch's")
    pseudo_weight: float = option(0.5, "weight of voxels with the teacher's labels beside labelled ones")
    largest_part: bool = option(False, "keep the largest part of each organ of a pseudo-label; harms paired organs")

    def __post_init__(self) -> None:
        if not (0 <= self.pretraining < 1 and 0 < self.box < 1):
            raise ValueError("pretraining lies in 0 to below 1, box above 0 and below 1")


class Mixed(NamedTuple):
    """Patches of two sources with their labels; ``mask`` (depth, height, width) is true where the first one is."""

    volumes: Tensor
    labels: Tensor
    mask: Tensor

    def loss(self, logits: Tensor, outside: float, inside: float) -> Tensor:
        """The two regions' losses, weighed."""
        return outside * region_loss(logits, self.labels, self.mask) + inside * region_loss(
            logits, self.labels, ~self.mask
        )


def mixed(outside: tuple[Tensor, Tensor], inside: tuple[Tensor, Tensor], mask: Tensor) -> Mixed:
    """Volumes and labels of ``inside`` in the box of ``outside``."""
    mask = mask.to(outside[0].device)
    return Mixed(pasted(outside[0], inside[0], mask), pasted(outside[1], inside[1], mask), mask)


class CopyPaste(Strategy):
    """The stages. A subclass gives the parts of the second one."""

    needs_unlabelled: ClassVar[bool] = True
    needs_full_labels: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = True
    Options: ClassVar[type[CopyPasteOptions]] = CopyPasteOptions
    own: CopyPasteOptions

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups)
        self.teacher: DCANet = copy.deepcopy(self.network).requires_grad_(False)

    @property
    def students(self) -> list[DCANet]:
        """All networks that learn."""
        return [self.network]

    def step_state(self, step: int) -> StepState:
        border = round(self.own.pretraining * self.options.steps)
        if step < border:
            return StepState(step, "pretraining", step, border)
        return StepState(step, "self_training", step - border, self.options.steps - border)

    def on_step_start(self, step_state: StepState, averaged: DCANet | None) -> bool:
        """At the first step of self-training, the network takes its averaged weights and the teacher a copy of them."""
        if step_state.stage != "self_training" or step_state.stage_step:
            return False
        if averaged is not None and step_state.step:
            self.network.load_state_dict(averaged.state_dict())
        self.teacher.load_state_dict(self.network.state_dict())
        return step_state.step > 0

    def weight(self, step_state: StepState) -> float:
        """Constant: the papers have no ramp, and nothing is drawn in vain while pretraining."""
        return self.options.unsupervised_weight if step_state.stage == "self_training" else 0.0

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        alone = step_state.stage == "pretraining" or batch.unlabelled is None
        return ("pretraining",) if alone else self.self_training_parts()

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        if part == "pretraining":
            return self._pretraining(batch, step_state)
        assert batch.unlabelled is not None
        return self.self_training(part, batch, batch.unlabelled, step_state)

    def on_step_end(self, step_state: StepState) -> None:
        if step_state.stage == "self_training":
            update_teacher(self.teacher, self.network, _TEACHER_DECAY)

    def self_training_parts(self) -> tuple[str, ...]:
        """The names of the second stage's parts, in their order."""
        raise NotImplementedError

    def self_training(self, part: str, batch: Batch, unlabelled: Tensor, step_state: StepState) -> Loss:
        """The loss of one part of the second stage."""
        raise NotImplementedError

    def box(self, volumes: Tensor, step_state: StepState) -> Tensor:
        """The step's mask, for all patches."""
        return box_mask(volumes.shape[2:], self.own.box, self.random(step_state))

    def both_ways(
        self, labelled: tuple[Tensor, Tensor], unlabelled: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Mixed, Mixed]:
        """The mixtures "in" and "out" of volumes with their labels, each of half a batch."""
        half = len(labelled[0]) // 2
        first = [(volumes[:half], labels[:half]) for volumes, labels in (labelled, unlabelled)]
        second = [(volumes[half:], labels[half:]) for volumes, labels in (labelled, unlabelled)]
        return mixed(first[0], first[1], mask), mixed(second[1], second[0], mask)

    @torch.no_grad()
    def pseudo_labels(self, volumes: Tensor) -> Tensor:
        """The teacher's labels."""
        labels = self.teacher(volumes).argmax(dim=1)
        return largest_parts(labels) if self.own.largest_part else labels

    def both_losses(self, network: Callable[[Tensor], Tensor], pair: tuple[Mixed, Mixed]) -> tuple[Tensor, Tensor]:
        """BCP's loss of a network on both mixtures, and its logits on them, inward first."""
        weight = self.own.pseudo_weight
        logits = network(torch.cat([one.volumes for one in pair])).float()
        half = len(pair[0].volumes)
        loss = pair[0].loss(logits[:half], 1.0, weight) + pair[1].loss(logits[half:], weight, 1.0)
        return loss, logits

    def _pretraining(self, batch: Batch, step_state: StepState) -> Loss:
        half = len(batch.volumes) // 2
        one = mixed(
            (batch.volumes[:half], batch.labels[:half]),
            (batch.volumes[half:], batch.labels[half:]),
            self.box(batch.volumes, step_state),
        )
        everywhere = torch.ones_like(one.mask)
        losses = [region_loss(student(one.volumes), one.labels, everywhere) for student in self.students]
        loss = torch.stack(losses).sum()
        return Loss(loss, {"supervised": loss.detach() / len(losses)})


def largest_parts(labels: Tensor) -> Tensor:
    """Label maps (batch, depth, height, width) with the largest connected part of each label."""
    kept = []
    for one in labels.cpu():
        found = torch.zeros_like(one)
        for label in one.unique().tolist():
            if label:
                mask = sitk.GetImageFromArray((one == label).numpy().astype("uint8"))
                parts = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
                found[torch.from_numpy(sitk.GetArrayFromImage(parts).astype("int64")) == 1] = label
        kept.append(found)
    return torch.stack(kept).to(labels.device)


class TwoStudents(CopyPaste):
    """Copy-paste with a second network, which learns from a strong view; the teacher follows the first."""

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options, groups)
        self.second = plain_vnet(options, groups)
        # Both views of what was last looked at and the networks' probabilities there, for a later part of the step.
        self.views: list[tuple[Tensor, Tensor]] = []

    @property
    def students(self) -> list[DCANet]:
        return [self.network, self.second]

    def on_mixtures(self, batch: Batch, unlabelled: Tensor, step_state: StepState) -> Loss:
        """BCP's losses of both networks, each on the mixtures of its own view, and Dice against the other's labels."""
        mask = self.box(unlabelled, step_state)
        labelled_views = (batch.volumes, strong_view(batch.volumes, self.random(step_state, 1)))
        unlabelled_views = (unlabelled, strong_view(unlabelled, self.random(step_state, 2)))
        total, logits, volumes = unlabelled.new_zeros(()), [], []
        for student, labelled, view in zip(self.students, labelled_views, unlabelled_views, strict=True):
            pair = self.both_ways((labelled, batch.labels), (view, self.pseudo_labels(view)), mask)
            loss, answer = self.both_losses(student, pair)
            total = total + loss
            logits.append(answer)
            volumes.append(torch.cat([one.volumes for one in pair]))
        self.keep(volumes, logits)
        crossed = self.taught_by_each_other(logits, 1.0)
        return Loss(total + crossed.total, {"supervised": total.detach() / 2, **crossed.values})

    def keep(self, volumes: Sequence[Tensor], logits: Sequence[Tensor]) -> None:
        """Remember both views and what the networks say of them."""
        self.views = [(view, answer.detach().softmax(dim=1)) for view, answer in zip(volumes, logits, strict=True)]

    @staticmethod
    def taught_by_each_other(logits: Sequence[Tensor], weight: float) -> Loss:
        """Dice of both networks against each other's labels."""
        labels = [answer.detach().argmax(dim=1) for answer in logits]
        loss = square_dice(logits[0].softmax(dim=1), labels[1]) + square_dice(logits[1].softmax(dim=1), labels[0])
        return Loss(weight * loss, {"unsupervised": loss.detach(), "agreement": agreement(*labels)})
