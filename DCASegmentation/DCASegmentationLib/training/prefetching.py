"""Patches of the next steps, drawn while the network is at work on this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from .sampling import Patches, StepPatches, StepSampler

# Steps that are drawn ahead, for each process: enough to even out a draw that takes longer than the others.
_AHEAD = 2


class Prefetcher:
    """Draws by ``sampler`` in the background, in one thread of this process or in ``workers`` processes.

    A step's patches depend on the step alone, so whatever was drawn ahead can be dropped, and is: when a run ends, or
    when a process that draws has died. Then a thread of this process draws on, and ``say`` receives a line about it.
    Results come back through pipes, not through shared memory, of which containers often have too little.

    ``unlabelled(step)`` says whether that step needs unlabeled patches; ``end`` is the first step not to draw.
    """

    def __init__(
        self,
        sampler: StepSampler,
        unlabelled: Callable[[int], bool],
        end: int,
        workers: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._sampler = sampler
        self._needs_unlabelled = unlabelled
        self._end = end
        self._say = say
        self._waiting: dict[tuple[int, bool], Future[StepPatches]] = {}
        self._ahead = _AHEAD * max(workers, 1)
        self._executor: Executor = _processes(sampler, workers) if workers else _thread()
        self._of_processes = workers > 0

    def take(self, step: int, unlabelled: bool) -> StepPatches:
        """The patches of ``step``, and a start of drawing those of the steps after it."""
        wanted = step, unlabelled
        try:
            self._submit(wanted)
            for later in range(step + 1, min(step + 1 + self._ahead, self._end)):
                self._submit((later, self._needs_unlabelled(later)))
            drawn = self._waiting.pop(wanted).result()
        except BrokenProcessPool:
            self._go_on_in_a_thread()
            return self.take(step, unlabelled)
        for passed in [key for key in self._waiting if key[0] <= step]:
            self._waiting.pop(passed).cancel()
        return drawn

    def close(self) -> None:
        """Stop drawing; what was drawn ahead is dropped."""
        self._waiting.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, key: tuple[int, bool]) -> None:
        if key not in self._waiting:
            if self._of_processes:
                self._waiting[key] = self._executor.submit(_draw, *key)
            else:
                self._waiting[key] = self._executor.submit(self._sampler.draw, *key)

    def _go_on_in_a_thread(self) -> None:
        self._waiting.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor, self._of_processes = _thread(), False
        if self._say is not None:
            self._say(
                "A process that draws patches was ended, perhaps for want of memory; the run goes on and draws them "
                "in its own process. --workers 0 does so from the start."
            )


def _thread() -> Executor:
    return ThreadPoolExecutor(1, thread_name_prefix="patches")


def _processes(sampler: StepSampler, count: int) -> Executor:
    # Forked processes share the cases in memory; elsewhere each gets a copy.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ProcessPoolExecutor(count, context, _begin, (sampler, os.getpid()))
        # All of them start now, while no thread of this process holds a lock.
        for future in [pool.submit(os.getpid) for _ in range(count)]:
            future.result()
    return pool


# A drawing process's own, handed to it once: the cases are in it.
_sampler: StepSampler | None = None


def _begin(sampler: StepSampler, parent: int) -> None:
    global _sampler
    _sampler = sampler
    # The process that trains decides what a Ctrl+C means, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once ``parent`` is gone, killed perhaps: it holds its own end of the pipe and would wait."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _draw(*key: Any) -> StepPatches:
    assert _sampler is not None
    labelled, unlabelled = _sampler.draw(*key)
    return StepPatches(_as_arrays(labelled), None if unlabelled is None else _as_arrays(unlabelled))


def _as_arrays(patches: Patches) -> Patches:
    """Tensors as arrays: they would be sent through shared memory."""
    return Patches._make(part.numpy() if isinstance(part, torch.Tensor) else part for part in patches)
