"""β-FFT: nonlinear interpolation and differentiated training (Hu et al., CVPR 2025).

Based on ABD with BCP: two networks learn BCP's mixtures of a weak and a strong view and teach each other on them, with
Dice(p_m, argmax p_other). Instead of displaced blocks, low frequencies are swapped: x1' = x1 - low(x1) + low(x2), and
x2' accordingly, where x1 and x2 are the two views of the same mixture. To keep the two networks different, the first
one has additional losses for each view: on labeled patches, and λ MSE(p(x_β), (1-β) p_a + β p_b) on x_β = (1-β) u_a + β
u_b with β ~ Beta(.1, .1), where p_a and p_b are the teacher's probabilities. With ``class_balance``, the losses on
labels and mixtures are the run's (``losses.supervised_loss``).

Deviations: in three dimensions, the band is a cube of |k| <= .117 x side on each axis (that of the code, but a smaller
part of the spectrum in 3D), symmetric, real part. Images and targets of a pair are always mixed in the same way (one of
the published scripts mixes u_a with itself). Cost: 2.3 times CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...option_fields import option
from .base import Batch, Loss, StepState, Strategy
from .copy_paste import CopyPasteOptions, TwoStudents
from .mixing import swap_low_frequencies
from .perturbation import augment_strongly


@dataclass(frozen=True)
class BetaFFTOptions(CopyPasteOptions):
    """Options of β-FFT."""

    box: float = option(0.6, "side of the pasted box as a fraction of the patch's side")
    low_share: float = option(30 / 256, "half width of the swapped frequency band as a fraction of a side")
    beta: float = option(0.1, "both parameters of the Beta distribution of the mixtures")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low_share <= 0.5 or self.beta <= 0:
            raise ValueError("low_share must be above 0 and at most 0.5, and beta above 0")


def interpolate(one: Tensor, other: Tensor, beta: Tensor) -> Tensor:
    """(1 - β) ``one`` + β ``other``, both (batch, ...); ``beta`` is (batch,)."""
    share = beta.view(-1, *[1] * (one.dim() - 1)).to(one)
    return (1 - share) * one + share * other


class BetaFFT(TwoStudents):
    """Two networks, of which the first has additional losses, and new samples with swapped frequencies."""

    name: ClassVar[str] = "beta_fft"
    Options: ClassVar[type[BetaFFTOptions]] = BetaFFTOptions
    own: BetaFFTOptions

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """The weight λ of the interpolation's consistency, with a ramp over the second stage."""
        number, stage_step, stage_steps = self.stages.get_stage(step_state.step, self.options.steps)
        ramp = step_state._replace(stage_step=stage_step, stage_steps=stage_steps)
        return Strategy.get_unsupervised_weight(self, ramp) if number else 0.0

    def list_self_training_losses(self) -> tuple[str, ...]:
        """See ``CopyPaste.list_self_training_losses``."""
        return ("mixed", "differentiated", "swapped")

    def compute_self_training_loss(
        self, loss_name: str, batch: Batch, unlabeled: Tensor, step_state: StepState
    ) -> Loss:
        """See ``CopyPaste.compute_self_training_loss``."""
        if loss_name == "mixed":
            return self.on_mixtures(batch, unlabeled, step_state)
        if loss_name == "differentiated":
            return self._compute_differentiated_loss(batch, unlabeled, step_state)
        swapped = swap_low_frequencies(self.views[0][0], self.views[1][0], self.strategy_options.low_share)
        samples = torch.cat(swapped).to(unlabeled.dtype)
        loss = self.compute_cross_supervision_loss([student(samples).float() for student in self.students], 1.0)
        return Loss(loss.total, {"swapped": loss.values["unsupervised"]})

    def _compute_differentiated_loss(self, batch: Batch, unlabeled: Tensor, step_state: StepState) -> Loss:
        """The additional losses of the first network, for each view."""
        half = len(unlabeled) // 2
        seed = int(torch.randint(2**31, (), generator=self.make_generator(step_state, 3)))
        beta = torch.from_numpy(
            np.random.default_rng(seed).beta(self.strategy_options.beta, self.strategy_options.beta, half)
        ).float()
        labeled_views = (batch.volumes, augment_strongly(batch.volumes, self.make_generator(step_state, 1)))
        unlabeled_views = (unlabeled, augment_strongly(unlabeled, self.make_generator(step_state, 2)))
        labeled_loss, distance = unlabeled.new_zeros(()), unlabeled.new_zeros(())
        for labeled, view in zip(labeled_views, unlabeled_views, strict=True):
            labeled_loss = labeled_loss + self.compute_supervised_loss(self.network(labeled), batch.labels, step_state)
            with torch.no_grad():
                target = self.teacher(view).float().softmax(dim=1)
            predicted = self.network(interpolate(view[:half], view[half:], beta)).float().softmax(dim=1)
            distance = distance + ((predicted - interpolate(target[:half], target[half:], beta)) ** 2).mean()
        values = {"labelled": labeled_loss.detach() / 2, "interpolated": distance.detach() / 2}
        return Loss(labeled_loss + self.get_unsupervised_weight(step_state) * distance, values)
