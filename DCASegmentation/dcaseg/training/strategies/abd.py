"""ABD: adaptive bidirectional displacement (Chi et al., CVPR 2024).

Two networks see a weak and a strong view of each patch. Patches are divided into blocks. In each view, the block in
which the network is least confident is replaced by a confident block of the other view (ABD-R,
``mixing.displace_blocks``). The networks teach each other on these new samples: Dice(p_m, argmax p_other).

``bcp`` (default, also the base of β-FFT): each network learns BCP's mixtures of its own view, and both teach each other
on the mixtures and on displaced mixtures, with weight 1 and no ramp. Cost: 1.5 times CPS. ``cross``: both networks
learn from labels. In the first two thirds of the run, they also learn from labeled patches whose most confident block
is replaced, with probability 1/2, by the other view's least confident block and its labels (ABD-I). They teach each
other on unlabeled patches and their displacements, with weight .1 and a ramp. Cost: 3 times CPS. With
``class_balance``, the losses on labels are the run's (``losses.supervised_loss``) in both.

Deviations: three dimensions (4³ blocks instead of 4²); two V-Nets instead of a U-Net and a Swin transformer; strong
views change intensities and may contain a box of noise, without rotation; a cutout does not change the label. DCA's
tables do not state which base their row uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...option_fields import option
from ..options import TrainingOptions
from .base import Batch, DatasetFingerprint, Loss, StepState, Strategy
from .copy_paste import CopyPasteOptions, TwoStudents
from .mixing import assemble_cubes, displace_blocks, displace_labeled_blocks, split_into_cubes
from .perturbation import augment_strongly

_CROSS_WEIGHT = 0.1
_WITH_LABELED = 2 / 3


@dataclass(frozen=True)
class ABDOptions(CopyPasteOptions):
    """Options of ABD."""

    base: Literal["bcp", "cross"] = option("bcp", "what the displacement is added to: BCP, or cross teaching")
    blocks: int = option(4, "blocks along each side of a patch")
    candidates: int = option(4, "number of most confident blocks that may replace a block")
    plain: float = option(
        0.5, "bcp: probability of taking the most confident block, not the nearest candidate", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 2 or not 1 <= self.candidates <= self.blocks**3:
            raise ValueError("blocks must be 2 or more, and candidates at most the number of blocks")


class ABD(TwoStudents):
    """Two networks on two views, with blocks displaced between the views."""

    name: ClassVar[str] = "abd"
    Options: ClassVar[type[ABDOptions]] = ABDOptions
    own: ABDOptions

    @classmethod
    def require(cls, options: TrainingOptions, fingerprint: DatasetFingerprint) -> None:
        """See ``Strategy.require``."""
        super().require(options, fingerprint)
        cls.require_grid(options, cls.parse_options(options).blocks, "blocks")

    def get_step_state(self, step: int) -> StepState:
        """See ``Strategy.get_step_state``."""
        return (
            super().get_step_state(step) if self.strategy_options.base == "bcp" else Strategy.get_step_state(self, step)
        )

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """See ``Strategy.weight``."""
        return (
            super().get_unsupervised_weight(step_state)
            if self.strategy_options.base == "bcp"
            else _CROSS_WEIGHT * Strategy.get_unsupervised_weight(self, step_state)
        )

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """See ``Strategy.get_loss_names``."""
        if self.strategy_options.base == "bcp":
            return super().get_loss_names(step_state, batch)
        return ("labelled", "unlabelled", "displaced") if batch.unlabeled is not None else ("labelled",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward``."""
        if loss_name == "labelled":
            return self._compute_labeled_loss(batch, step_state)
        if loss_name == "unlabelled":
            assert batch.unlabeled is not None
            views = (batch.unlabeled, augment_strongly(batch.unlabeled, self.make_generator(step_state, 1)))
            logits = [student(view).float() for student, view in zip(self.students, views, strict=True)]
            self.keep(views, logits)
            return self.compute_cross_supervision_loss(logits, self.get_unsupervised_weight(step_state))
        return super().forward(loss_name, batch, step_state)

    def list_self_training_losses(self) -> tuple[str, ...]:
        """See ``CopyPaste.list_self_training_losses``."""
        return ("mixed", "displaced")

    def compute_self_training_loss(
        self, loss_name: str, batch: Batch, unlabeled: Tensor, step_state: StepState
    ) -> Loss:
        """See ``CopyPaste.compute_self_training_loss``."""
        return (
            self._compute_displaced_loss(step_state)
            if loss_name == "displaced"
            else self.on_mixtures(batch, unlabeled, step_state)
        )

    def _compute_displaced_loss(self, step_state: StepState) -> Loss:
        count = self.strategy_options.blocks
        one, other = (
            (split_into_cubes(view, count), split_into_cubes(predicted, count)) for view, predicted in self.views
        )
        generator = self.make_generator(step_state, 3)
        draws = torch.rand(one[0].shape[1], generator=generator)
        plain = self.strategy_options.plain if self.strategy_options.base == "bcp" else 0.0
        views = displace_blocks(one, other, self.strategy_options.candidates, (draws >= plain).tolist())
        samples = torch.cat([assemble_cubes(view) for view in views])
        logits = [student(samples).float() for student in self.students]
        loss = self.compute_cross_supervision_loss(
            logits, 1.0 if self.strategy_options.base == "bcp" else self.get_unsupervised_weight(step_state)
        )
        return Loss(loss.total, {"displaced": loss.values["unsupervised"]})

    def _compute_labeled_loss(self, batch: Batch, step_state: StepState) -> Loss:
        """The losses of cross teaching on labeled patches, with displaced ones in the first part of the run."""
        count, labels = self.strategy_options.blocks, batch.labels
        views = (batch.volumes, augment_strongly(batch.volumes, self.make_generator(step_state, 4)))
        logits = [student(view).float() for student, view in zip(self.students, views, strict=True)]
        loss = torch.stack([self.compute_supervised_loss(output, labels, step_state) for output in logits]).sum()
        values = {"supervised": loss.detach() / 2}
        if step_state.step < _WITH_LABELED * self.options.steps:
            one, other = (
                (split_into_cubes(view, count), split_into_cubes(output.detach().softmax(dim=1), count))
                for view, output in zip(views, logits, strict=True)
            )
            chosen = (torch.rand(len(labels), generator=self.make_generator(step_state, 5)) < 0.5).tolist()
            new = displace_labeled_blocks(one, other, split_into_cubes(labels[:, None], count), chosen)
            samples = torch.cat([assemble_cubes(view) for view, _ in new])
            targets = torch.cat([assemble_cubes(blocks)[:, 0] for _, blocks in new])
            extra = [self.compute_supervised_loss(student(samples), targets, step_state) for student in self.students]
            loss = loss + 2 * torch.stack(extra).sum()
        return Loss(loss, values)
