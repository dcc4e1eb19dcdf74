"""Training in mixed precision on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dcaseg.training import mixed_precision
from dcaseg.training.trainer import Trainer
from test_training import OPTIONS, THREE_BALLS, case_of_balls, log_of

pytestmark = pytest.mark.skipif(
    mixed_precision.low_precision(torch.device("cpu")) is None, reason="this processor has no AMX"
)


def losses_of(tmp_path, options, steps=20):
    cases = [case_of_balls(1), case_of_balls(2)]
    trainer = Trainer(tmp_path / str(options.mixed_precision), options, THREE_BALLS, cases, [case_of_balls(3, False)])
    trainer.run()
    return trainer, [line for line in log_of(trainer) if line["step"] <= steps]


@pytest.mark.parametrize("fraction", [1.0, 0.0])
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
