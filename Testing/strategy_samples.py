"""Strategies, batches and label maps of small size for the tests of the training strategies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcaseg.method.log_gap import Partition
from dcaseg.training.strategies.base import Batch, DatasetFingerprint, Strategy
from dcaseg.training.strategies.registry import make_strategy
from dcaseg.training.training_set import divide
from test_strategies import options_for
from test_training import THREE_BALLS, case_of_balls

SIDES = (16, 16, 32)
NAMES = tuple(organ.name for organ in THREE_BALLS)
FACTS = DatasetFingerprint((100_000, 8_000, 1_000, 100), labeled=2, unlabeled=8, organs=NAMES)
GROUPS: Partition = divide([case_of_balls(1)], THREE_BALLS, "top2")


def strategy_for(name: str, fingerprint: DatasetFingerprint = FACTS, **changes) -> Strategy:
    torch.manual_seed(0)
    return make_strategy(options_for(name, **{"steps": 100, **changes}), GROUPS, fingerprint)


def batch_of(count: int = 2, seed: int = 0, sides: tuple[int, ...] = SIDES) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.rand(2 * count, 1, *sides, generator=generator)
    labels = torch.randint(4, (count, *sides), generator=generator)
    return Batch(volumes[:count], labels, [()] * count, volumes[count:])


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


def volume_of(values: list[float], channels: bool = False) -> Tensor:
    """A map of one voxel for each value: (1, 1, 1, n) labels, or logits (1, channel, 1, 1, n)."""
    found = torch.tensor(values)
    return found.T[None, :, None, None, :] if channels else found[None, None, None, :]


def inputs_of(module: nn.Module) -> list[Tensor]:
    """A list to which each following call of ``module`` adds its first input."""
    found: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach().clone()))
    return found


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 7) -> None:
    """Give ``module`` other weights, so that a copy of a network predicts other labels than the network."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
