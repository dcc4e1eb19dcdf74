"""Measures how long training waits for data: the fraction of a step that is spent drawing patches.

Runs in a separate process: python -m dcaseg.benchmark.data_loading OPTIONS
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..organs import AMOS
from ..synthesis.phantom.case import generate
from ..training.cases import Case, prepare_case
from ..training.options import TrainingOptions
from ..training.strategies.base import Batch, StepState
from ..training.trainer import Trainer
from .process_cost import ProcessFailedError

_SCAN_MM = (3.0, 3.0, 5.0)


@dataclass(frozen=True)
class DataLoading:
    """Seconds of the steps after the first: in total, and for drawing, augmenting and moving their patches."""

    steps: int
    seconds: float
    drawing_seconds: float

    @property
    def share(self) -> float:
        """Fraction of the time in which the network waits for data."""
        return self.drawing_seconds / self.seconds


def measure_data_loading(
    options: TrainingOptions, device: str = "cpu", steps: int = 3, threads: int | None = None
) -> DataLoading:
    """Measure steps of the trainer on phantoms in a separate process. Raises ProcessFailedError if it fails."""
    args = json.dumps({"options": options.to_json(), "device": device, "steps": steps, "threads": threads})
    command = [sys.executable, "-m", f"{__package__}.data_loading", args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFailedError(" ".join(done.stderr.strip().splitlines()[-3:]))
    return DataLoading(**json.loads(done.stdout.strip().splitlines()[-1]))


class _TimedTrainer(Trainer):
    """Records the time of each step and of drawing its patches."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.drawing: list[float] = []
        self.steps: list[float] = []

    def _draw(self, step_state: StepState) -> Batch:
        started = time.perf_counter()
        batch = super()._draw(step_state)
        self.drawing.append(time.perf_counter() - started)
        return batch

    def _advance(self) -> dict[str, float]:
        started = time.perf_counter()
        values = super()._advance()
        self.steps.append(time.perf_counter() - started)
        return values


def _make_phantom_cases(options: TrainingOptions) -> tuple[list[Case], list[Case]]:
    labeled, unlabeled = generate(1, _SCAN_MM), generate(2, _SCAN_MM)
    return (
        [prepare_case("labelled", labeled.ct, labeled.labels, options.grid)],
        [prepare_case("unlabelled", unlabeled.ct, None, options.grid)],
    )


def _main(json_args: str) -> None:
    args = json.loads(json_args)
    options = replace(TrainingOptions.from_json(args["options"]), steps=args["steps"] + 1)
    if args["threads"]:
        torch.set_num_threads(args["threads"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = _TimedTrainer(Path(folder), options, AMOS, *_make_phantom_cases(options), device=args["device"])
        trainer.run(save_every=10**9)
    # The first step is excluded, since it also loads kernels and allocates memory.
    print(json.dumps(asdict(DataLoading(args["steps"], sum(trainer.steps[1:]), sum(trainer.drawing[1:])))))


if __name__ == "__main__":
    _main(sys.argv[1])
