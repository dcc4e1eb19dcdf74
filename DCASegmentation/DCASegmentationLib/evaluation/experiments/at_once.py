"""Several runs at the same time, each in a process of its own.

Small networks keep neither a GPU nor many cores busy: a GPU waits for the processor that hands it one short kernel
after the other. Runs do not depend on each other, so the numbers are those of runs made in turn.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...inference.allocator import keep_freed_memory
from .definitions import Arm

if TYPE_CHECKING:
    from .runs import Runs

_LOOK_EVERY_SECONDS = 0.5


def make_at_once(runs: Runs, jobs: Sequence[tuple[Arm, int]], processes: int) -> None:
    """Make the run of each (arm, seed) of ``jobs``, so many at a time as there are ``processes``, in that order.

    What fails stops the others at their next step; all of them are saved and go on when they are asked for again.
    Raises UserError as ``Runs.scores`` does, and where a process was ended from outside.
    """
    spawning = multiprocessing.get_context("spawn")
    shares = spawning.Array("d", len(jobs))
    stop = spawning.Event()
    threads = max(1, torch.get_num_threads() // processes)
    # A function that reports stays here: it belongs to this process's terminal.
    work = _Work(replace(runs, progress=None), shares, stop)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), spawning, _begin, (work, threads))
    try:
        with _deaf_to_ctrl_c():
            waiting: set[Future[None]] = {pool.submit(_make, index, *job) for index, job in enumerate(jobs)}
        while waiting:
            done, waiting = wait(waiting, _LOOK_EVERY_SECONDS, FIRST_COMPLETED)
            for one in done:
                one.result()
            reached = shares[:]
            finished = sum(share >= 1 for share in reached)
            runs.report(sum(reached) / len(jobs), f"{finished} of {len(jobs)} runs, {processes} at once")
    except BrokenProcessPool as error:
        raise UserError(
            "A run's process was ended from outside, perhaps for want of memory.",
            "Call it again to go on, with fewer --at-once.",
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started within never hear Ctrl+C, which the terminal sends to them, too: this one tells them to stop.

    It hears afterwards what came meanwhile. Windows has nothing of the kind.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Stopped(Exception):  # noqa: N818 - not a fault of this run
    """Another run failed, or the user pressed Ctrl+C."""


@dataclass(frozen=True)
class _Work:
    runs: Runs
    # Of each job, and written by the process that makes it.
    shares: SynchronizedArray[float]
    stop: Event

    def make(self, index: int, arm: Arm, seed: int) -> None:
        def report(share: float) -> None:
            if self.stop.is_set():
                raise _Stopped
            # Scoring comes after the last step, and only then is the run done.
            self.shares[index] = 0.99 * share

        report(0.0)
        self.runs.make(arm, seed, report)
        self.shares[index] = 1.0


# A process's own, handed to it once: the cases are in it.
_work: _Work | None = None


def _begin(work: _Work, threads: int) -> None:
    global _work
    _work = work
    torch.set_num_threads(threads)
    keep_freed_memory()


def _make(index: int, arm: Arm, seed: int) -> None:
    assert _work is not None
    _work.make(index, arm, seed)
