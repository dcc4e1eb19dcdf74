"""Our trainer and a plain MONAI loop, measured with the same network in separate processes."""

from __future__ import annotations

import pytest

from dcaseg.benchmark.training_loops import LOOPS, measure_loop, missing
from dcaseg.training.options import GridOptions, TrainingOptions


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_is_measured_on_real_steps(loop):
    if package := missing(loop):
        pytest.skip(f"{package} is not installed")
    options = TrainingOptions(grid=GridOptions(spacing=(12.0, 12.0, 12.0)), n_filters=2, patch=(32, 32, 32))
    cost = measure_loop(loop, options, steps=2, threads=1)
    assert cost.loop == loop and cost.samples == 4
    assert cost.samples_per_second > 0 and cost.cpu_seconds > 0 and cost.peak_mib > 100
    assert 0.3 < cost.network_share <= 1
