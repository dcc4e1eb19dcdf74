"""Training in mixed precision on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dcaseg.training import mixed_precision
from dcaseg.training.trainer import Trainer
from test_strategies import BASELINES, VARIANTS, mostly_slow, options_for, trainer_for
from test_training import OPTIONS, THREE_BALLS, case_of_balls, log_of


def losses_of(tmp_path, options, steps=20):
    cases = [case_of_balls(1), case_of_balls(2)]
    trainer = Trainer(tmp_path / str(options.mixed_precision), options, THREE_BALLS, cases, [case_of_balls(3, False)])
    trainer.run()
    return trainer, [line for line in log_of(trainer) if line["step"] <= steps]


@pytest.mark.slow
@pytest.mark.skipif(
    mixed_precision.select_autocast_dtype(torch.device("cpu")) is None, reason="this processor has no AMX"
)
@pytest.mark.parametrize("fraction", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_losses_agree_with_those_in_single_precision(tmp_path, fraction):
    options = replace(OPTIONS, expert_stage_fraction=fraction, learning_rate=2e-3, steps=20)
    mixed, lower = losses_of(tmp_path, replace(options, mixed_precision=True))
    _single, exact = losses_of(tmp_path, replace(options, mixed_precision=False))
    assert all(parameter.dtype == torch.float32 for parameter in mixed.network.parameters())
    names = [name for name in exact[0] if name not in ("step", "seconds")]
    assert "medium" in names
    first = [[line[0][name] for name in names] for line in (lower, exact)]
    np.testing.assert_allclose(*first, rtol=0.03)
    assert first[0] != first[1]
    means = [[np.mean([line[name] for line in lines[-5:]]) for name in names] for lines in (lower, exact)]
    np.testing.assert_allclose(*means, rtol=0.08)


@pytest.mark.parametrize("name", mostly_slow("dca", "dca joint", *BASELINES, *VARIANTS))
def test_the_same_weights_have_gradients_in_mixed_precision(tmp_path, name):
    """Versions of PyTorch before 2.11 lose gradients of weights that are first used under no_grad, if they cache."""
    trainer = trainer_for(tmp_path, options_for(name, steps=100, expert_stage_fraction=0.0 if "joint" in name else 0.5))
    trainer.strategy.train()
    step_state = trainer.strategy.get_step_state(70)
    batch = trainer._draw(step_state)
    assert (batch.unlabeled is None) == (name in ("vnet", "plain_experts"))
    caches: list[bool] = []

    def note_cache(*_: object) -> None:
        if torch.is_autocast_enabled("cpu"):
            caches.append(torch.is_autocast_cache_enabled())

    trainer.strategy.register_forward_pre_hook(note_cache)
    trainer.network.encoder.register_forward_pre_hook(note_cache)
    found = []
    for precision in (None, torch.bfloat16):
        trainer._low_precision = precision
        trainer.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        trainer._backward(batch, step_state)
        found.append({key for key, each in trainer.strategy.named_parameters() if each.grad is not None})
    assert found[0] == found[1] and found[0]
    assert caches and not any(caches)
