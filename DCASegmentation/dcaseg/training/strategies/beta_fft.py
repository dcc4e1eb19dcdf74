"""β-FFT: nonlinear interpolation and differentiated training (Hu et al., CVPR 2025).

On the chassis of ABD(BCP): two networks on BCP's mixtures of a weak and a strong view, which teach each other there
with Dice(p_m, argmax p_other). Displacement gives way to swapped low frequencies: x1' = x1 - low(x1) + low(x2) and
x2' likewise, x1 and x2 being the two views of the same mixture. And only the first network trains more, once for each
view: on labelled patches, and with λ MSE(p(x_β), (1-β) p_a + β p_b) on x_β = (1-β) u_a + β u_b, β ~ Beta(.1, .1),
where p_a and p_b are the teacher's probabilities, so that the two networks stay different.

What deviates: three dimensions: a cube of |k| <= .117 x side on each axis (the code's band, which in 3D is a smaller
part of the spectrum), symmetric, real part. Images and targets of a pair are always mixed alike (one of the published
scripts mixes u_a with itself). Cost 2.3 CPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Batch, Loss, StepState, Strategy, option
from .copy_paste import CopyPasteOptions, TwoStudents
from .losses import cross_entropy_and_square_dice
from .mixing import frequencies_swapped
from .perturbation import strong_view


@dataclass(frozen=True)
class BetaFFTOptions(CopyPasteOptions):
    """The band and the mixture."""

    box: float = option(0.6, "side of the pasted box as a share of the patch's")
    low_share: float = option(30 / 256, "half width of the swapped band of frequencies as a share of a side")
    beta: float = option(0.1, "both parameters of the Beta distribution of the mixtures")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low_share <= 0.5 or self.beta <= 0:
            raise ValueError("low_share lies above 0 and up to 0.5, beta above 0")


def mixed_up(one: Tensor, other: Tensor, beta: Tensor) -> Tensor:
    """(1 - β) ``one`` + β ``other``, ``beta`` (batch,)."""
    share = beta.view(-1, *[1] * (one.dim() - 1)).to(one)
    return (1 - share) * one + share * other


class BetaFFT(TwoStudents):
    """Two networks, of which the first trains more; new samples by swapped frequencies."""

    name: ClassVar[str] = "beta_fft"
    Options: ClassVar[type[BetaFFTOptions]] = BetaFFTOptions
    own: BetaFFTOptions

    def weight(self, step_state: StepState) -> float:
        """Of the mixtures' consistency alone, with a ramp over the second stage."""
        return Strategy.weight(self, step_state) if step_state.stage == "self_training" else 0.0

    def self_training_parts(self) -> tuple[str, ...]:
        return ("mixed", "differentiated", "swapped")

    def self_training(self, part: str, batch: Batch, unlabelled: Tensor, step_state: StepState) -> Loss:
        if part == "mixed":
            return self.on_mixtures(batch, unlabelled, step_state)
        if part == "differentiated":
            return self._differentiated(batch, unlabelled, step_state)
        swapped = frequencies_swapped(self.views[0][0], self.views[1][0], self.own.low_share)
        samples = torch.cat(swapped).to(unlabelled.dtype)
        loss = self.taught_by_each_other([student(samples).float() for student in self.students], 1.0)
        return Loss(loss.total, {"swapped": loss.values["unsupervised"]})

    def _differentiated(self, batch: Batch, unlabelled: Tensor, step_state: StepState) -> Loss:
        """What the first network learns more than the second, for each view."""
        half = len(unlabelled) // 2
        seed = int(torch.randint(2**31, (), generator=self.random(step_state, 3)))
        beta = torch.from_numpy(np.random.default_rng(seed).beta(self.own.beta, self.own.beta, half)).float()
        labelled_views = (batch.volumes, strong_view(batch.volumes, self.random(step_state, 1)))
        unlabelled_views = (unlabelled, strong_view(unlabelled, self.random(step_state, 2)))
        labelled_loss, distance = unlabelled.new_zeros(()), unlabelled.new_zeros(())
        for labelled, view in zip(labelled_views, unlabelled_views, strict=True):
            labelled_loss = labelled_loss + cross_entropy_and_square_dice(self.network(labelled), batch.labels)
            with torch.no_grad():
                taught = self.teacher(view).float().softmax(dim=1)
            found = self.network(mixed_up(view[:half], view[half:], beta)).float().softmax(dim=1)
            distance = distance + ((found - mixed_up(taught[:half], taught[half:], beta)) ** 2).mean()
        values = {"labelled": labelled_loss.detach() / 2, "interpolated": distance.detach() / 2}
        return Loss(labelled_loss + self.weight(step_state) * distance, values)
