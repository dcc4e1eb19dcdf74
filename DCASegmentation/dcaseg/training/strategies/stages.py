"""Where the stages of a run begin, for comparison methods with several: copy-paste, published CReST and SimiS."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def split_into_equal_stages(steps: int, count: int) -> list[int]:
    """The first steps of ``count`` equal parts of a run."""
    borders: list[int] = np.linspace(0, steps, count + 1).round().astype(int).tolist()
    return borders[:-1]


class Stages(nn.Module):
    """The first step of each stage of a run; that of the first stage is 0.

    ``plan`` returns them for a number of steps. They are a buffer, so that a run which resumes with another number of
    steps neither returns to a finished stage nor skips the beginning of one.
    """

    def __init__(self, plan: Callable[[int], Sequence[int]], steps: int) -> None:
        super().__init__()
        self._plan = plan
        self.first_steps: Tensor
        self.register_buffer("first_steps", torch.tensor(plan(steps)))

    def get_stage(self, step: int, steps: int) -> tuple[int, int, int]:
        """The number of the stage of ``step``, the step's number in it, and its length, in a run of ``steps``."""
        borders = [*self.first_steps.tolist(), steps]
        number = bisect_right(borders, step, hi=len(borders) - 1) - 1
        return number, step - borders[number], borders[number + 1] - borders[number]

    def begins(self, step: int) -> bool:
        """Whether a stage after the first begins at ``step``."""
        return step in self.first_steps.tolist()[1:]

    def resume(
        self,
        step: int,
        saved_steps: int,
        steps: int,
        stored: Mapping[str, Tensor],
        earlier: Sequence[int] | None = None,
    ) -> None:
        """Continue at ``step`` of a run of ``steps`` that was saved as one of ``saved_steps``.

        Finished stages stay finished; later ones begin at their place in the new plan, but not before ``step``.
        ``stored`` are the strategy's tensors in the checkpoint. Earlier versions did not store first steps; they were
        ``earlier``, by default those of the plan.
        """
        if "stages.first_steps" not in stored:
            self.first_steps.copy_(torch.tensor(self._plan(saved_steps) if earlier is None else earlier))
        if steps != saved_steps:
            planned = zip(self.first_steps.tolist(), self._plan(steps), strict=True)
            self.first_steps.copy_(torch.tensor([old if old <= step else max(step, new) for old, new in planned]))
