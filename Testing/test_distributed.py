"""Two processes with half of the batch each learn the same as one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcaseg.errors import UserError
from dcaseg.training.checkpoints import load_checkpoint
from dcaseg.training.distributed import Processes

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from dcaseg.training.distributed import leave
from dcaseg.training.trainer import Trainer
from test_training import OPTIONS, THREE_BALLS, case_of_balls

torch.set_num_threads(1)
options = replace(
    OPTIONS, steps=4, dice_channels="all", class_balance=0.0, ramp_fraction=0.1,
    unsup_weight_cutoff=0.0, optimizer="sgd",
    # Rounding to bfloat16, on processors with AMX, depends on the batch.
    mixed_precision=False,
    # A residual decoder changes so little in four steps that flipped pseudo-labels would be a third of the change.
    residual=False, upsampling="transposed",
    # Processes draw different views, and each takes the mean over its own confident voxels, as is usual.
    pseudo_label_source="experts", pseudo_label_confidence=0.0,
)
for name, first in (("joint", 0.0), ("staged", 0.5)):
    trainer = Trainer(
        Path(sys.argv[1]) / name, replace(options, expert_stage_fraction=first), THREE_BALLS,
        [case_of_balls(1), case_of_balls(2)], [case_of_balls(3, labeled=False)], [case_of_balls(4)],
    )
    if trainer.processes.first:
        trainer.folder.mkdir(parents=True, exist_ok=True)
        trainer.save("start.pt")
    trainer.run(validate_every=4, minutes=5)
leave()
"""


def weights(path: Path) -> torch.Tensor:
    """All weights of a checkpoint's network, concatenated."""
    return torch.cat([tensor.flatten() for tensor in load_checkpoint(path)["network"].values()])


def run(folder: Path, *launcher: str) -> dict[str, list[dict[str, float]]]:
    """Train in ``folder``, and return the log of each run without the times."""
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "DCASegmentation")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logs = {path.parent.name: path.read_text().splitlines() for path in folder.glob("*/log.jsonl")}
    return {name: [{**json.loads(line), "seconds": 0} for line in lines] for name, lines in logs.items()}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_batch(tmp_path):
    one = run(tmp_path / "one")
    two = run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert set(one) == set(two) == {"joint", "staged"}
    for name in one:
        assert len(one[name]) == len(two[name]) == 4
        assert one[name][0] == pytest.approx(two[name][0], abs=2e-5)
        for line, other in zip(one[name], two[name], strict=True):
            assert line.pop("dice", {}) == pytest.approx(other.pop("dice", {}), abs=0.02)
            # Rounding flips a few voxels of a pseudo-label, since it is an argmax: up to 0.0024 by the fourth step.
            assert line == pytest.approx(other, abs=5e-3)
        start, alone, together = (
            weights(tmp_path / path) for path in (f"one/{name}/start.pt", f"one/{name}/last.pt", f"two/{name}/last.pt")
        )
        # Without averaged gradients, these are 0.73 and 0.39; with them, 0.14 (flipped pseudo-labels) and 0.01.
        assert (together - alone).norm() < {"joint": 0.25, "staged": 0.05}[name] * (alone - start).norm()
    assert "unsupervised" in one["joint"][-1] and "aggregation" in two["staged"][-1]
    assert (tmp_path / "two" / "joint" / "last.pt").exists()


def test_a_batch_that_cannot_be_divided_is_rejected():
    assert Processes(1, 2).share([1, 2, 3, 4]) == [3, 4]
    with pytest.raises(UserError, match=r"batch of 3 .* 2 processes"):
        Processes(1, 2).share([1, 2, 3])
