"""UA-MT: uncertainty-aware mean teacher (Yu et al., MICCAI 2019).

The teacher's weights are a running mean (.99) of the student's. L = L_seg(z, y) + λ mean_{v certain} mean_c (p -
p_T)^2, where p_T is the teacher's prediction for the patch with noise (standard deviation .1, clipped at .2) and
dropout (1/2; 0.1 in networks with fewer than 16 filters). A voxel is certain if the entropy of the mean of eight such
predictions is below (3/4 + 1/4 exp(-5 (1 - t/T)^2)) log C.

The target is the first of the eight predictions; the published code makes another pass. Cost: 1.2 times CPS.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor

from ...method.log_gap import Partition
from ...method.network import DCANet
from ..ema import compute_warmup_decay, update_teacher
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, build_vnet, get_published_dropout, whole_label_loss
from .perturbation import add_clipped_noise

# The authors' number of passes of the teacher.
_PASSES = 8
_TEACHER_DECAY = 0.99


class UncertaintyAwareMeanTeacher(Strategy):
    """A mean teacher whose consistency loss uses only voxels where the teacher is certain.

    The teacher's weights are a running mean of the student's. It predicts a patch several times with dropout and noise.
    It is certain where the entropy of the mean prediction is below a threshold, which rises from about 3/4 of the
    maximum entropy to the maximum.
    """

    name: ClassVar[str] = "ua_mt"
    needs_unlabeled: ClassVar[bool] = True

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_vnet(options, groups, dropout=get_published_dropout(options, needed=True))
        self.teacher: DCANet = copy.deepcopy(self.network).requires_grad_(False)

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        return ("labelled", "unlabelled") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "labelled":
            loss = whole_label_loss(self.network(batch.volumes), batch, self.options, step_state)
            return Loss(loss, {"supervised": loss.detach()})
        assert batch.unlabeled is not None
        student = self.network(batch.unlabeled).float().softmax(dim=1)
        target, entropy = self._predict_with_teacher(batch.unlabeled, step_state)
        certain = entropy < self._compute_threshold(step_state, student.shape[1])
        distance = ((student - target) ** 2).mean(dim=1)
        loss = (distance * certain).sum() / certain.sum().clamp(min=1)
        agreement = (student.argmax(dim=1) == target.argmax(dim=1)).float().mean()
        values = {"unsupervised": loss.detach(), "agreement": agreement, "certain": certain.float().mean()}
        return Loss(self.get_unsupervised_weight(step_state) * loss, values)

    def on_step_end(self, step_state: StepState) -> None:
        """See ``Strategy.on_step_end``."""
        update_teacher(self.teacher, self.network, compute_warmup_decay(step_state.step, _TEACHER_DECAY))

    @torch.no_grad()
    def _predict_with_teacher(self, volumes: Tensor, step_state: StepState) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities in one pass with noise and dropout, and the entropy of the mean of several
        passes.

        The entropy is (batch, depth, height, width).
        """
        predictions = []
        for index in range(_PASSES):
            noisy = add_clipped_noise(volumes, self.make_generator(step_state, index))
            predictions.append(self.teacher(noisy).float().softmax(dim=1))
        mean = torch.stack(predictions).mean(dim=0)
        # The student learns from the first prediction.
        return predictions[0], -(mean * mean.clamp(min=1e-6).log()).sum(dim=1)

    @staticmethod
    def _compute_threshold(step_state: StepState, n_channels: int) -> float:
        ramp = math.exp(-5 * (1 - min(step_state.stage_step / step_state.stage_steps, 1)) ** 2)
        return (0.75 + 0.25 * ramp) * math.log(n_channels)
