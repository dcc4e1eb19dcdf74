"""Sends cases to workers, a few at a time, and collects the outcomes, even if workers are killed."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from uuid import uuid4

from distributed import Client, Future, KilledWorker
from distributed.comm import CommClosedError

from ..errors import OutputError, UserError
from .case import FAILED, Case, Outcome, Settings
from .case_worker import describe_timeout, process
from .dask_workers import replace_lost_workers

_TICK_SECONDS = 0.5
_PATIENCE_SECONDS = 300.0
_SECONDS_BETWEEN_REPLACEMENTS = 5.0
# Cases submitted per worker thread: no worker idles, and the scheduler holds little.
_AHEAD = 2
_DISK_PROBLEMS_IN_A_ROW = 3

_RESUME_HINT = "Run the same command again to resume."


def process_cases(
    client: Client, cases: Sequence[Case], settings: Settings, tick: Callable[[Sequence[str]], None]
) -> Iterator[Outcome]:
    """Yield the outcome of each case as it finishes; ``tick(keys of the running cases)`` is called twice a second.

    A case whose worker was killed, for instance because memory ran out, is retried, the last time alone. Raises
    UserError if the scheduler or all workers are lost, and OutputError if the disk is full. Cases without an outcome
    then count as not started.
    """
    try:
        yield from _process_cases(client, cases, settings, tick)
    # The connection to the scheduler may close at any moment, also outside of our own calls.
    except CommClosedError:
        raise _make_scheduler_lost_error() from None


def _process_cases(
    client: Client, cases: Sequence[Case], settings: Settings, tick: Callable[[Sequence[str]], None]
) -> Iterator[Outcome]:
    done: queue.SimpleQueue[tuple[Case, Future]] = queue.SimpleQueue()
    waiting = iter(cases)
    # Cases whose worker was killed. Another case on that worker may be to blame, so they run one by one at the end.
    suspects: deque[Case] = deque()
    # The time when the only attempt of a case without any other began.
    alone: dict[str, float] = {}
    # Dask takes tasks with the same key for the same task, and other cohorts may use the scheduler, too.
    run = uuid4().hex
    remaining = len(cases)
    running: dict[str, Future] = {}
    without_workers: float | None = None
    replaced = time.monotonic()
    disk_problems = 0
    while remaining:
        workers = _count_threads(client)
        if time.monotonic() - replaced > _SECONDS_BETWEEN_REPLACEMENTS:
            replace_lost_workers(client)
            replaced = time.monotonic()
        without_workers = None if workers else without_workers or time.monotonic()
        if without_workers and time.monotonic() - without_workers > _PATIENCE_SECONDS:
            raise UserError("All workers have stopped.", f"Start workers again. {_RESUME_HINT}")
        batch = list(islice(waiting, max(max(workers, 1) * _AHEAD - len(running), 0)))
        if suspects and not running and not batch:
            batch = [suspects.popleft()]
            alone[batch[0].key] = time.monotonic()
        for case in batch:
            attempt = "-alone" if case.key in alone else ""
            key = f"case-{case.key}-{run}{attempt}"
            future = client.submit(process, case, settings, key=key, pure=False)
            running[case.key] = future
            future.add_done_callback(lambda finished, case=case: done.put((case, finished)))
        # Workers run the cases in this order, one per thread.
        tick(list(running)[:workers])
        for case, future in _iter_finished(done):
            running.pop(case.key)
            if _worker_was_killed(future) and case.key not in alone:
                suspects.append(case)
                continue
            seconds = time.monotonic() - alone.get(case.key, time.monotonic())
            outcome = _get_outcome(case, future, seconds, settings)
            remaining -= 1
            disk_problems = disk_problems + 1 if outcome.again and "disk is full" in outcome.reason else 0
            yield outcome
            if disk_problems == _DISK_PROBLEMS_IN_A_ROW:
                raise OutputError(f"The disk is full: {settings.out}.", f"Free some space. {_RESUME_HINT}")
        if client.status not in ("running", "connecting"):
            raise _make_scheduler_lost_error()


def _count_threads(client: Client) -> int:
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
    except (KeyError, OSError):
        return 0
    return sum(int(worker["nthreads"]) for worker in workers.values())


def _iter_finished(done: queue.SimpleQueue[tuple[Case, Future]]) -> Iterator[tuple[Case, Future]]:
    """Yield the finished cases, after waiting for at most one tick."""
    try:
        yield done.get(timeout=_TICK_SECONDS)
        while True:
            yield done.get_nowait()
    except queue.Empty:
        return


def _get_outcome(case: Case, future: Future, seconds_alone: float, settings: Settings) -> Outcome:
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    if future.status in ("cancelled", "lost"):
        raise _make_scheduler_lost_error()
    error = future.exception()
    if isinstance(error, KilledWorker) and seconds_alone > settings.case_minutes * 60:
        return Outcome(case.key, FAILED, describe_timeout(settings), again=False)
    if isinstance(error, KilledWorker):
        reason = (
            "The worker was killed repeatedly, the last time while it ran this case alone. It probably does not have "
            "enough memory for this CT."
        )
        return Outcome(case.key, FAILED, reason, again=True)
    return Outcome(case.key, FAILED, f"The worker failed: {type(error).__name__}: {error}", again=True)


def _worker_was_killed(future: Future) -> bool:
    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _make_scheduler_lost_error() -> UserError:
    return UserError("The connection to the Dask scheduler was lost.", f"Start the scheduler again. {_RESUME_HINT}")
