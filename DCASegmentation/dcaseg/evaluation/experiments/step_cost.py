"""Counts the operations of a training step of each method by running real steps."""

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

# Shortest side (voxels) of a patch that represents a larger one.
_SHORTEST = 32


@dataclass(frozen=True)
class StepCost:
    """The mean cost of a step over all steps of a run, including those of separate stages.

    ``macs`` counts the multiply-accumulates of convolutions and matrix products, forward and backward. ``passes``
    counts the patches that pass through the encoder of any network, with or without a gradient.
    """

    macs: float
    passes: float


class _Counter(TorchDispatchMode):
    """Counts multiplications and additions with PyTorch's formulas.

    PyTorch's ``FlopCounterMode`` counts them by module, and fails on modules that mix inputs with and without
    gradients.
    """

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
    """The mean cost of a step with ``options``, measured on one step in the middle of each stage.

    Raises UserError if the strategy cannot train with these options on such cases.
    """
    require(options, facts)
    patch = _smaller_patch(options, facts)
    scale = float(np.prod(options.patch) / np.prod(patch))
    counted = replace(options, patch=patch)
    state = torch.random.get_rng_state()
    strategy = make_strategy(counted, groups, facts).train()
    steps: Counter[tuple[str, bool]] = Counter()
    steps_of_stage: dict[tuple[str, bool], list[int]] = {}
    for step in range(options.steps):
        step_state = strategy.step_state(step)
        stage = (step_state.stage, strategy.weight(step_state) > 0)
        steps[stage] += 1
        steps_of_stage.setdefault(stage, []).append(step)
    costs = [(_count(strategy, steps_of_stage[stage][count // 2]), count) for stage, count in steps.items()]
    torch.random.set_rng_state(state)
    return StepCost(
        scale * sum(cost.macs * count for cost, count in costs) / options.steps,
        sum(cost.passes * count for cost, count in costs) / options.steps,
    )


def _smaller_patch(options: TrainingOptions, facts: Facts) -> tuple[int, int, int]:
    """A smaller patch of the same proportions that the strategy accepts.

    Counting on it is faster, and convolutions, nearly all of the cost, are proportional to its volume.
    """
    depth, height, width = options.patch
    for divisor in (4, 3, 2):
        patch = (depth // divisor, height // divisor, width // divisor)
        is_valid = all(side % (16 * divisor) == 0 and side // divisor >= _SHORTEST for side in options.patch)
        if not is_valid:
            continue
        try:
            require(replace(options, patch=patch), facts)
        except UserError:
            continue
        return patch
    return options.patch


def _count(strategy: Strategy, step: int) -> StepCost:
    """The cost of one step on random patches, without the optimizer, whose cost is small."""
    options, step_state = strategy.options, strategy.step_state(step)
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(options.labeled_per_step, 1, *options.patch, generator=generator)
    labels = torch.randint(
        strategy.network.out_channels, (options.labeled_per_step, *options.patch), generator=generator
    )
    unlabeled = None
    if strategy.weight(step_state) > 0:
        unlabeled = torch.rand(options.unlabeled_per_step, 1, *options.patch, generator=generator)
    batch = Batch(volumes, labels, [()] * len(labels), unlabeled)
    deepest = float(np.prod([side // 16 for side in options.patch]))
    passes = [0.0]

    def count_pass(module: nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
        passes[0] += output[:, 0].numel() / deepest

    encoders = [module for module in strategy.modules() if isinstance(module, Encoder)]
    handles = [encoder.blocks[-1].register_forward_hook(count_pass) for encoder in encoders]
    with _Counter() as counter:
        for part in strategy.loss_names(step_state, batch):
            strategy(part, batch, step_state).total.backward()
    for handle in handles:
        handle.remove()
    strategy.zero_grad()
    return StepCost(counter.operations / 2, passes[0])
