"""ABD: adaptive bidirectional displacement (Chi et al., CVPR 2024).

Two networks see a weak and a strong view of each patch. Patches are cut into blocks; in each view the block in which
the network is least confident gives way to a confident one of the other view (ABD-R, ``mixing.displaced``), which
makes new samples for the networks to teach each other: Dice(p_m, argmax p_other).

``bcp`` (the default; β-FFT builds on it): each network learns BCP's mixtures of its own view, both teach each other
on the mixtures and on displaced mixtures, with weight 1 and no ramp. Cost 1.5 CPS.
``cross``: both networks learn from labels, from labelled patches whose most confident block gives way to the other
view's least confident one with its labels (ABD-I, with probability 1/2, in the first two thirds of the run), and
teach each other on unlabelled patches and their displacements, weight .1 with a ramp. Cost 3 CPS.

What deviates: three dimensions (4³ blocks for 4²); two V-Nets for a U-Net and a Swin transformer; strong views change
intensities and may hold a box of noise, without rotation; a cutout leaves the label. DCA's tables do not say which
base their row has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..options import TrainingOptions
from .base import Batch, Facts, Loss, StepState, Strategy, option
from .copy_paste import CopyPasteOptions, TwoStudents
from .losses import cross_entropy_and_square_dice
from .mixing import assembled, cubes, displaced, displaced_with_labels
from .perturbation import strong_view

_CROSS_WEIGHT = 0.1
_WITH_LABELLED = 2 / 3


@dataclass(frozen=True)
class ABDOptions(CopyPasteOptions):
    """The base and the blocks."""

    base: Literal["bcp", "cross"] = option("bcp", "what the displacement is added to: BCP, or cross teaching")
    blocks: int = option(4, "blocks along each side of a patch")
    candidates: int = option(4, "so many of the most confident blocks may replace one")
    plain: float = option(0.5, "bcp: probability that the most confident block is taken, not the nearest candidate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 2 or not 1 <= self.candidates <= self.blocks**3:
            raise ValueError("blocks are 2 or more, candidates at most their number")


class ABD(TwoStudents):
    """Two networks on two views, displaced into each other."""

    name: ClassVar[str] = "abd"
    Options: ClassVar[type[ABDOptions]] = ABDOptions
    own: ABDOptions

    @classmethod
    def require(cls, options: TrainingOptions, facts: Facts) -> None:
        super().require(options, facts)
        cls.require_grid(options, cls.read(options).blocks, "blocks")

    def step_state(self, step: int) -> StepState:
        return super().step_state(step) if self.own.base == "bcp" else Strategy.step_state(self, step)

    def weight(self, step_state: StepState) -> float:
        return (
            super().weight(step_state) if self.own.base == "bcp" else _CROSS_WEIGHT * Strategy.weight(self, step_state)
        )

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        if self.own.base == "bcp":
            return super().loss_names(step_state, batch)
        return ("labelled", "unlabelled", "displaced") if batch.unlabelled is not None else ("labelled",)

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        if part == "labelled":
            return self._labelled(batch, step_state)
        if part == "unlabelled":
            assert batch.unlabelled is not None
            views = (batch.unlabelled, strong_view(batch.unlabelled, self.random(step_state, 1)))
            logits = [student(view).float() for student, view in zip(self.students, views, strict=True)]
            self.keep(views, logits)
            return self.taught_by_each_other(logits, self.weight(step_state))
        return super().forward(part, batch, step_state)

    def self_training_parts(self) -> tuple[str, ...]:
        return ("mixed", "displaced")

    def self_training(self, part: str, batch: Batch, unlabelled: Tensor, step_state: StepState) -> Loss:
        return self._displaced(step_state) if part == "displaced" else self.on_mixtures(batch, unlabelled, step_state)

    def _displaced(self, step_state: StepState) -> Loss:
        count = self.own.blocks
        one, other = ((cubes(view, count), cubes(answer, count)) for view, answer in self.views)
        generator = self.random(step_state, 3)
        draws = torch.rand(one[0].shape[1], generator=generator)
        plain = self.own.plain if self.own.base == "bcp" else 0.0
        views = displaced(one, other, self.own.candidates, (draws >= plain).tolist())
        samples = torch.cat([assembled(view) for view in views])
        logits = [student(samples).float() for student in self.students]
        loss = self.taught_by_each_other(logits, 1.0 if self.own.base == "bcp" else self.weight(step_state))
        return Loss(loss.total, {"displaced": loss.values["unsupervised"]})

    def _labelled(self, batch: Batch, step_state: StepState) -> Loss:
        """Cross teaching's losses on labelled patches, with the displaced ones in the first part of the run."""
        count, labels = self.own.blocks, batch.labels
        views = (batch.volumes, strong_view(batch.volumes, self.random(step_state, 4)))
        logits = [student(view).float() for student, view in zip(self.students, views, strict=True)]
        loss = torch.stack([cross_entropy_and_square_dice(answer, labels) for answer in logits]).sum()
        values = {"supervised": loss.detach() / 2}
        if step_state.step < _WITH_LABELLED * self.options.steps:
            one, other = (
                (cubes(view, count), cubes(answer.detach().softmax(dim=1), count))
                for view, answer in zip(views, logits, strict=True)
            )
            chosen = (torch.rand(len(labels), generator=self.random(step_state, 5)) < 0.5).tolist()
            new = displaced_with_labels(one, other, cubes(labels[:, None], count), chosen)
            samples = torch.cat([assembled(view) for view, _ in new])
            targets = torch.cat([assembled(found)[:, 0] for _, found in new])
            extra = [cross_entropy_and_square_dice(student(samples), targets) for student in self.students]
            loss = loss + 2 * torch.stack(extra).sum()
        return Loss(loss, values)
