"""Counts the operations of a training step of each method, and measures its time, by running real steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ...training.mixed_precision import select_autocast_dtype
from ...training.options import TrainingOptions
from ...training.strategies.base import Batch, DatasetFingerprint, Strategy
from ...training.strategies.registry import make_strategy, require

# Shortest side (voxels) of a patch that represents a larger one.
_MIN_SIDE = 32


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


def compute_step_cost(options: TrainingOptions, groups: Partition, fingerprint: DatasetFingerprint) -> StepCost:
    """The mean cost of a step with ``options``, measured on one step in the middle of each stage.

    Raises UserError if the strategy cannot train with these options on such cases.
    """
    require(options, fingerprint)
    patch = _shrink_patch(options, fingerprint)
    scale = float(np.prod(options.patch) / np.prod(patch))
    with _fresh_strategy(replace(options, patch=patch), groups, fingerprint) as strategy:
        costs = [(_count(strategy, step), share) for step, share in _select_stage_steps(strategy)]
    return StepCost(
        scale * sum(cost.macs * share for cost, share in costs), sum(cost.passes * share for cost, share in costs)
    )


def measure_step_time(
    options: TrainingOptions, groups: Partition, fingerprint: DatasetFingerprint, device: str = "cpu", repeats: int = 1
) -> float:
    """The mean time of a step with ``options``: losses, backward pass and optimizer, without drawing patches.

    It is measured on random patches in the middle of each stage, as the fastest of ``repeats`` steps after a first one.
    On the CPU it is the time that this process computed, on which other programs have less influence than on the time
    that passed; with one thread they are equal on an idle machine. Raises UserError as ``compute_step_cost`` does.
    """
    require(options, fingerprint)
    with _fresh_strategy(options, groups, fingerprint) as strategy:
        strategy.to(device)
        strategy.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        precision = select_autocast_dtype(torch.device(device)) if options.mixed_precision else None
        parameters = list(strategy.trainable_parameters())
        # The choice of the optimizer hardly matters: it is a small part of a step.
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
        total = 0.0
        for step, share in _select_stage_steps(strategy):
            step_state = strategy.get_step_state(step)
            batch = _make_random_batch(strategy, step, device)
            times = []
            for _ in range(1 + repeats):
                start = _read_clock(device)
                for name in strategy.get_loss_names(step_state, batch):
                    # Without its cache, like the trainer.
                    with torch.autocast(
                        torch.device(device).type, precision, enabled=precision is not None, cache_enabled=False
                    ):
                        loss = strategy(name, batch, step_state).total
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                strategy.on_step_end(step_state)
                times.append(_read_clock(device) - start)
            total += share * min(times[1:])
    return total


def _read_clock(device: str) -> float:
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _fresh_strategy(options: TrainingOptions, groups: Partition, fingerprint: DatasetFingerprint) -> Iterator[Strategy]:
    """A strategy with initial weights. The state of torch's random generator is restored afterwards."""
    state = torch.random.get_rng_state()
    try:
        yield make_strategy(options, groups, fingerprint).train()
    finally:
        torch.random.set_rng_state(state)


def _select_stage_steps(strategy: Strategy) -> list[tuple[int, float]]:
    """The step in the middle of each stage, with and without unlabeled patches, and the stage's share of the run."""
    steps: dict[tuple[str, bool], list[int]] = {}
    for step in range(strategy.options.steps):
        step_state = strategy.get_step_state(step)
        steps.setdefault((step_state.stage, strategy.get_unsupervised_weight(step_state) > 0), []).append(step)
    return [(of_stage[len(of_stage) // 2], len(of_stage) / strategy.options.steps) for of_stage in steps.values()]


def _shrink_patch(options: TrainingOptions, fingerprint: DatasetFingerprint) -> tuple[int, int, int]:
    """A smaller patch of the same proportions that the strategy accepts.

    Counting on it is faster, and convolutions, nearly all of the cost, are proportional to its volume.
    """
    depth, height, width = options.patch
    for divisor in (4, 3, 2):
        patch = (depth // divisor, height // divisor, width // divisor)
        is_valid = all(side % (16 * divisor) == 0 and side // divisor >= _MIN_SIDE for side in options.patch)
        if not is_valid:
            continue
        try:
            require(replace(options, patch=patch), fingerprint)
        except UserError:
            continue
        return patch
    return options.patch


def _count(strategy: Strategy, step: int) -> StepCost:
    """The cost of one step on random patches, without the optimizer, whose cost is small."""
    options, step_state = strategy.options, strategy.get_step_state(step)
    batch = _make_random_batch(strategy, step)
    deepest = float(np.prod([side // 16 for side in options.patch]))
    passes = [0.0]

    def count_pass(module: nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
        passes[0] += output[:, 0].numel() / deepest

    encoders = [module for module in strategy.modules() if isinstance(module, Encoder)]
    handles = [encoder.blocks[-1].register_forward_hook(count_pass) for encoder in encoders]
    with _Counter() as counter:
        for part in strategy.get_loss_names(step_state, batch):
            strategy(part, batch, step_state).total.backward()
    for handle in handles:
        handle.remove()
    strategy.zero_grad()
    return StepCost(counter.operations / 2, passes[0])


def _make_random_batch(strategy: Strategy, step: int, device: str = "cpu") -> Batch:
    """Random patches and labels for ``step``, with unlabeled patches if they have a weight in it."""
    options = strategy.options
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(options.labeled_per_step, 1, *options.patch, generator=generator)
    labels = torch.randint(
        strategy.network.out_channels, (options.labeled_per_step, *options.patch), generator=generator
    )
    unlabeled = None
    if strategy.get_unsupervised_weight(strategy.get_step_state(step)) > 0:
        unlabeled = torch.rand(options.unlabeled_per_step, 1, *options.patch, generator=generator).to(device)
    return Batch(volumes.to(device), labels.to(device), [()] * len(labels), unlabeled)
