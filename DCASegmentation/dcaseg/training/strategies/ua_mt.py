"""Uncertainty-aware mean teacher (Yu et al., MICCAI 2019)."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.network import DCANet
from ..ema import update_teacher, warmup_decay
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, plain_vnet, whole_label_loss
from .perturbation import clipped_noise

# The authors' settings: dropout, and how often the teacher is asked.
_DROPOUT = 0.5
_PASSES = 8
_TEACHER_DECAY = 0.99


class UncertaintyAwareMeanTeacher(Strategy):
    """A teacher follows the student as a running average; the student agrees with it where the teacher, asked several
    times under dropout and noise, is certain: entropy below a threshold that rises from 3/4 of its maximum to all."""

    name: ClassVar[str] = "ua_mt"
    needs_unlabelled: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = plain_vnet(options, groups, dropout=_DROPOUT)
        self.teacher: DCANet = copy.deepcopy(self.network).requires_grad_(False)

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("labelled", "unlabelled") if batch.unlabelled is not None else ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        if part == "labelled":
            loss = whole_label_loss(self.network(batch.volumes), batch, self.options, step_state)
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabelled is not None
        student = self.network(batch.unlabelled).float().softmax(dim=1)
        taught, entropy = self._ask_teacher(batch.unlabelled, step_state)
        certain = entropy < self._threshold(step_state, student.shape[1])
        distance = ((student - taught) ** 2).mean(dim=1)
        loss = (distance * certain).sum() / certain.sum().clamp(min=1)
        agreement = (student.argmax(dim=1) == taught.argmax(dim=1)).float().mean()
        values = {"unsupervised": loss.detach(), "agreement": agreement, "certain": certain.float().mean()}
        return Loss(self.weight(step_state) * loss, values)

    def on_step_end(self, step_state: StepState) -> None:
        update_teacher(self.teacher, self.network, warmup_decay(step_state.step, _TEACHER_DECAY))

    @torch.no_grad()
    def _ask_teacher(self, volumes: Tensor, step_state: StepState) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities on noisy volumes, and the entropy (batch, depth, height, width) of their mean
        over several passes with dropout."""
        answers = []
        for each in range(_PASSES):
            noisy = clipped_noise(volumes, self.random(step_state, each))
            answers.append(self.teacher(noisy).float().softmax(dim=1))
        mean = torch.stack(answers).mean(dim=0)
        # The first answer is the one that is taught.
        return answers[0], -(mean * mean.clamp(min=1e-6).log()).sum(dim=1)

    @staticmethod
    def _threshold(step_state: StepState, n_channels: int) -> float:
        ramp = math.exp(-5 * (1 - min(step_state.stage_step / step_state.stage_steps, 1)) ** 2)
        return (0.75 + 0.25 * ramp) * math.log(n_channels)
