"""Measures how fast the machine multiplies matrices, and which fraction of that rate the network reaches.

Runs in a separate process: python -m dcaseg.benchmark.rates BUNDLE --rounds 3

The process measures both alternately, in billions of floating-point operations per second of CPU time, that is, per
core in use. Other programs on the machine hardly affect these rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..inference.backends.selection import AUTO, choose_backend
from ..inference.device import choose_device
from ..inference.options import SegmentOptions
from ..inference.process_settings import keep_freed_memory
from ..inference.sliding_window import WindowPrediction
from ..method.network_summary import summarize
from ..models.bundle import Bundle
from .process_cost import ProcessFailedError, make_thread_environment

_SIDE = 2048
# A single product takes a tenth of a second, which is too short to time.
_PRODUCTS = 4


@dataclass(frozen=True)
class Rates:
    """Median rates in GFLOP per CPU second: of matrix products with side 2048 (``sgemm``), and of the network.

    The network's operations are those of its convolutions; a multiplication and an addition count as two.
    ``window_cpu_s`` is the CPU time and ``window_gflop`` the work of a window, ``backend`` is what ran the network.
    """

    sgemm: float
    network: float
    window_cpu_s: float
    window_gflop: float
    backend: str = "eager"

    @property
    def share(self) -> float:
        """The network's rate as a fraction of the machine's."""
        return self.network / self.sgemm


def measure_rates(bundle: Path, threads: int, rounds: int = 3) -> Rates:
    """Measure the rates of a bundle's network on the CPU, run like in ``dca segment``.

    Raises ProcessFailedError if the process fails.
    """
    command = [sys.executable, "-m", f"{__package__}.rates", str(bundle), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=make_thread_environment(threads))
    if done.returncode:
        raise ProcessFailedError(" ".join(done.stderr.strip().splitlines()[-3:]))
    return Rates(**json.loads(done.stdout.strip().splitlines()[-1]))


def _measure_rates(folder: Path, rounds: int) -> Rates:
    keep_freed_memory()
    bundle = Bundle.load(folder)
    patch = bundle.metadata.patch

    def ignore(message: str) -> None:
        return

    predict = WindowPrediction(
        bundle.network,
        SegmentOptions(),
        choose_device("cpu"),
        ignore,
        lambda task: choose_backend(AUTO, task, torch.rand(1, 1, *patch), ignore, ignore),
        patch,
        bundle.metadata.weights.sha256,
    )
    windows = torch.rand(predict.plan.batch, 1, *patch)
    gflop = 2e-9 * summarize(bundle.network(), patch)[-1].macs
    # A warm-up of each, which also loads kernels and allocates memory.
    measure_sgemm_rate()
    predict(windows)
    products, forwards = [], []
    for _ in range(rounds):
        products.append(measure_sgemm_rate())
        forwards.append(_measure_cpu_s(lambda: predict(windows)) / len(windows))
    window = statistics.median(forwards)
    return Rates(statistics.median(products), gflop / window, window, gflop, predict.backend)


def measure_sgemm_rate() -> float:
    """GFLOP per CPU second of products of two matrices with side 2048, with torch's number of threads."""
    one, other = torch.rand(2, _SIDE, _SIDE)

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(one, other)

    return 2e-9 * _SIDE**3 * _PRODUCTS / _measure_cpu_s(multiply)


def _measure_cpu_s(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    """Print the rates as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(asdict(_measure_rates(args.bundle, args.rounds))))


if __name__ == "__main__":
    main()
