"""What a training step of a system costs: counted on one real step, not estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ...errors import UserError
from ...method.log_gap import Partition
from ...method.vnet import Encoder
from ...training.options import TrainingOptions
from ...training.strategies.base import Batch, Facts, Strategy
from ...training.strategies.registry import make_strategy, require

# No side of a patch that stands for a larger one is shorter.
_SHORTEST = 32


@dataclass(frozen=True)
class StepCost:
    """``macs`` are multiply-accumulates of convolutions and matrix products, forward and backward, in a step;
    ``passes`` the patches that go through an encoder, of any network, with or without a gradient. Means over a run's
    steps: a stage of its own costs what it costs."""

    macs: float
    passes: float


class _Counter(TorchDispatchMode):
    """Adds up multiplications and additions by PyTorch's own formulas. Its ``FlopCounterMode`` does the same for each
    module, and fails on modules that mix inputs with and without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


def step_cost(options: TrainingOptions, groups: Partition, facts: Facts) -> StepCost:
    """The mean cost of a step of a run with these options, by one step in the middle of each of its stages.

    Raises UserError where the strategy cannot learn with these options from such cases.
    """
    require(options, facts)
    patch = _smaller(options, facts)
    scale = float(np.prod(options.patch) / np.prod(patch))
    counted = replace(options, patch=patch)
    state = torch.random.get_rng_state()
    strategy = make_strategy(counted, groups, facts).train()
    steps: Counter[tuple[str, bool]] = Counter()
    of_kind: dict[tuple[str, bool], list[int]] = {}
    for step in range(options.steps):
        step_state = strategy.step_state(step)
        kind = (step_state.stage, strategy.weight(step_state) > 0)
        steps[kind] += 1
        of_kind.setdefault(kind, []).append(step)
    found = [(_count(strategy, of_kind[kind][count // 2]), count) for kind, count in steps.items()]
    torch.random.set_rng_state(state)
    return StepCost(
        scale * sum(one.macs * count for one, count in found) / options.steps,
        sum(one.passes * count for one, count in found) / options.steps,
    )


def _smaller(options: TrainingOptions, facts: Facts) -> tuple[int, int, int]:
    """A smaller patch of the same proportions that the strategy takes, to count with: convolutions, nearly all of the
    cost, are in proportion to it."""
    depth, height, width = options.patch
    for divisor in (4, 3, 2):
        patch = (depth // divisor, height // divisor, width // divisor)
        whole = all(side % (16 * divisor) == 0 and side // divisor >= _SHORTEST for side in options.patch)
        if not whole:
            continue
        try:
            require(replace(options, patch=patch), facts)
        except UserError:
            continue
        return patch
    return options.patch


def _count(strategy: Strategy, step: int) -> StepCost:
    """The cost of one step on random patches; the optimizer, small beside it, is left out."""
    options, step_state = strategy.options, strategy.step_state(step)
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(options.labelled_per_step, 1, *options.patch, generator=generator)
    labels = torch.randint(
        strategy.network.out_channels, (options.labelled_per_step, *options.patch), generator=generator
    )
    unlabelled = None
    if strategy.weight(step_state) > 0:
        unlabelled = torch.rand(options.unlabelled_per_step, 1, *options.patch, generator=generator)
    batch = Batch(volumes, labels, [()] * len(labels), unlabelled)
    deepest = float(np.prod([side // 16 for side in options.patch]))
    passes = [0.0]

    def note(module: nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
        passes[0] += output[:, 0].numel() / deepest

    encoders = [module for module in strategy.modules() if isinstance(module, Encoder)]
    handles = [encoder.blocks[-1].register_forward_hook(note) for encoder in encoders]
    with _Counter() as counter:
        for part in strategy.loss_names(step_state, batch):
            strategy(part, batch, step_state).total.backward()
    for handle in handles:
        handle.remove()
    strategy.zero_grad()
    return StepCost(counter.operations / 2, passes[0])
