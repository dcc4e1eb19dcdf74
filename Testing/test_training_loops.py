"""Our trainer and a plain MONAI loop, measured with the same network in separate processes."""

from __future__ import annotations

import pytest

from dcaseg.benchmark.training_loops import (
    COMPILED,
    LOOPS,
    NNUNET,
    find_missing_requirement,
    measure_loop,
    measure_loops,
)
from dcaseg.training.options import GridOptions, TrainingOptions


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_is_measured_on_real_steps(loop):
    if package := find_missing_requirement(loop):
        pytest.skip(f"{package} is not installed")
    options = TrainingOptions(grid=GridOptions(spacing=(12.0, 12.0, 12.0)), n_filters=2, patch=(32, 32, 32))
    cost = measure_loop(loop, options, steps=2, threads=1)
    assert cost.loop == loop and cost.samples == 4
    assert cost.samples_per_second > 0 and cost.cpu_seconds > 0 and cost.peak_mib > 100
    assert 0.3 < cost.network_share <= 1


@pytest.mark.slow
def test_a_loop_that_fails_is_left_out_and_the_others_are_kept(monkeypatch, tmp_path):
    broken = tmp_path / "compiler"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    # Otherwise compiled code of an earlier run would be used.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    options = TrainingOptions(grid=GridOptions(spacing=(12.0, 12.0, 12.0)), n_filters=2, patch=(32, 32, 32))
    notes: list[str] = []
    costs = measure_loops(options, "cpu", 2, 1, 1, notes.append)
    assert [cost.loop for cost in costs] == [
        name for name in LOOPS if name != COMPILED and not find_missing_requirement(name)
    ]
    assert any(note.startswith(f"{COMPILED} failed and was skipped") for note in notes)
    assert (find_missing_requirement(NNUNET) is not None) == any(
        note.startswith(f"{NNUNET} was skipped") for note in notes
    )
