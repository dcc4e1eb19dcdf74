"""How fast the machine multiplies matrices, and how much of that the network reaches.

Run in a process of its own: python -m dcaseg.benchmark.rates BUNDLE --rounds 3

Both in the same process, in turn, in billions of floating-point operations per second of CPU time and so for each core
that is used: other programs on the machine then take little from it.
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
from .process_cost import ProcessFailedError, with_threads

_SIDE = 2048
# A product of a tenth of a second is too short to be timed alone.
_PRODUCTS = 4


@dataclass(frozen=True)
class Rates:
    """Medians in GFLOP per CPU second: of products of matrices of side 2048 (SGEMM), and of the network's windows.

    The network's operations are those of its convolutions, a multiplication and an addition being two.
    ``window_cpu_s`` is the CPU time of one window, ``window_gflop`` its work, ``runtime`` what runs it.
    """

    sgemm: float
    network: float
    window_cpu_s: float
    window_gflop: float
    runtime: str = "eager"

    @property
    def share(self) -> float:
        """The network's rate as a share of the machine's."""
        return self.network / self.sgemm


def measure_rates(bundle: Path, threads: int, rounds: int = 3) -> Rates:
    """Rates of a bundle's network on the CPU, as ``dca segment`` runs it. Raises ProcessFailedError."""
    command = [sys.executable, "-m", f"{__package__}.rates", str(bundle), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=with_threads(threads))
    if done.returncode:
        raise ProcessFailedError(" ".join(done.stderr.strip().splitlines()[-3:]))
    return Rates(**json.loads(done.stdout.strip().splitlines()[-1]))


def _rates(folder: Path, rounds: int) -> Rates:
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
    # The first of each also loads kernels and memory.
    sgemm_rate()
    predict(windows)
    products, forwards = [], []
    for _ in range(rounds):
        products.append(sgemm_rate())
        forwards.append(_cpu_s(lambda: predict(windows)) / len(windows))
    window = statistics.median(forwards)
    return Rates(statistics.median(products), gflop / window, window, gflop, predict.runtime)


def sgemm_rate() -> float:
    """GFLOP per CPU second of a product of two matrices of side 2048, with as many threads as torch has."""
    one, other = torch.rand(2, _SIDE, _SIDE)

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(one, other)

    return 2e-9 * _SIDE**3 * _PRODUCTS / _cpu_s(multiply)


def _cpu_s(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    print(json.dumps(asdict(_rates(told.bundle, told.rounds))))


if __name__ == "__main__":
    main()
