"""Cases to workers and outcomes back, a few at a time, whatever happens to the workers."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from distributed import Client, Future, KilledWorker
from distributed.comm import CommClosedError

from ..errors import OutputError, UserError
from .case import FAILED, Case, Outcome, Settings
from .case_worker import process
from .dask_workers import replace_lost_workers

_TICK_SECONDS = 0.5
_PATIENCE_SECONDS = 300.0
_SECONDS_BETWEEN_REPLACEMENTS = 5.0
# Enough that no worker waits for the next case, few enough that the scheduler holds little.
_AHEAD = 2
_DISK_PROBLEMS_IN_A_ROW = 3

_GO_ON = "Run the same command again to go on where it stopped."


def outcomes(
    client: Client, cases: Sequence[Case], settings: Settings, tick: Callable[[Sequence[str]], None]
) -> Iterator[Outcome]:
    """The outcome of each case, as they come; ``tick(keys of the cases at work)`` is called twice a second.

    A case whose worker was ended, as by the system when memory is short, is tried again, at last with nothing beside
    it. Raises UserError where the scheduler or all of its workers are gone, and OutputError where nothing can be
    written any more; cases without an outcome then are as if they had not been begun.
    """
    try:
        yield from _outcomes(client, cases, settings, tick)
    # The client asks only the scheduler; it may close at any moment, not only between two of our questions.
    except CommClosedError:
        raise _scheduler_gone() from None


def _outcomes(
    client: Client, cases: Sequence[Case], settings: Settings, tick: Callable[[Sequence[str]], None]
) -> Iterator[Outcome]:
    done: queue.SimpleQueue[tuple[Case, Future]] = queue.SimpleQueue()
    waiting = iter(cases)
    # Their workers were ended, which may have been the fault of a case beside them: at the end, one by one.
    suspects: deque[Case] = deque()
    alone: set[str] = set()
    left = len(cases)
    running: dict[str, Future] = {}
    without_workers: float | None = None
    replaced = time.monotonic()
    disk_problems = 0
    while left:
        workers = _threads(client)
        if time.monotonic() - replaced > _SECONDS_BETWEEN_REPLACEMENTS:
            replace_lost_workers(client)
            replaced = time.monotonic()
        without_workers = None if workers else without_workers or time.monotonic()
        if without_workers and time.monotonic() - without_workers > _PATIENCE_SECONDS:
            raise UserError("All workers are gone.", f"Start workers again. {_GO_ON}")
        next_ones = _next(waiting, max(workers, 1) * _AHEAD - len(running))
        if suspects and not running and not next_ones:
            next_ones = [suspects.popleft()]
            alone.add(next_ones[0].key)
        for case in next_ones:
            attempt = "-alone" if case.key in alone else ""
            key = f"case-{case.key}-{settings.weights[:8]}{attempt}"
            future = client.submit(process, case, settings, key=key, pure=False)
            running[case.key] = future
            future.add_done_callback(lambda finished, case=case: done.put((case, finished)))
        # Workers take them in this order, one for each of their threads.
        tick(list(running)[:workers])
        for case, future in _finished(done):
            running.pop(case.key)
            if _was_ended(future) and case.key not in alone:
                suspects.append(case)
                continue
            outcome = _outcome(case, future)
            left -= 1
            disk_problems = disk_problems + 1 if outcome.again and "disk is full" in outcome.reason else 0
            yield outcome
            if disk_problems == _DISK_PROBLEMS_IN_A_ROW:
                raise OutputError(f"The disk is full: {outcome.reason}", f"Free some space. {_GO_ON}")
        if client.status not in ("running", "connecting"):
            raise _scheduler_gone()


def _next(waiting: Iterator[Case], count: int) -> list[Case]:
    return [case for _, case in zip(range(count), waiting, strict=False)]


def _threads(client: Client) -> int:
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
    except (KeyError, OSError):
        return 0
    return sum(int(worker["nthreads"]) for worker in workers.values())


def _finished(done: queue.SimpleQueue[tuple[Case, Future]]) -> Iterator[tuple[Case, Future]]:
    """What has finished, after waiting for a tick at most."""
    try:
        yield done.get(timeout=_TICK_SECONDS)
        while True:
            yield done.get_nowait()
    except queue.Empty:
        return


def _outcome(case: Case, future: Future) -> Outcome:
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    if future.status in ("cancelled", "lost"):
        raise _scheduler_gone()
    error = future.exception()
    if isinstance(error, KilledWorker):
        reason = (
            "Its worker was ended again and again, at last with no other case beside it: probably the memory does not "
            "suffice for this CT."
        )
        return Outcome(case.key, FAILED, reason, again=True)
    return Outcome(case.key, FAILED, f"The worker failed: {type(error).__name__}: {error}", again=True)


def _was_ended(future: Future) -> bool:
    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _scheduler_gone() -> UserError:
    return UserError("The Dask scheduler went away.", f"Start it again. {_GO_ON}")
