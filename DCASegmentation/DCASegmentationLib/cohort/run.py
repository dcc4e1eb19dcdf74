"""A cohort from its input to its report; begun again, it goes on where it stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from ..dicom.selection import Rules
from ..errors import OutputError, UserError
from ..lock import locked
from ..organs import Vocabulary
from ..partials import remove_folder
from .case import PENDING, Case, readable
from .dispatch import outcomes
from .finding import find
from .ledger import ENDED_EARLY, Ledger
from .report.writing import write_report
from .settings import CASES, LEDGER, LOCK, REPORT, Settings, prepare
from .state import State
from .workers import require_shared_folders

_PARTIAL = ".partial-"
_SMALLEST_FREE_BYTES = 50_000_000


@dataclass(frozen=True)
class Cohort:
    """What to run: all CTs in ``source``, with ``settings``; the ``vocabulary`` is the model's, ``model`` its name.

    ``retry_failed`` tries again what failed in an earlier run for a fault of its own, too.
    """

    source: Path
    settings: Settings
    rules: Rules
    vocabulary: Vocabulary
    model: str
    retry_failed: bool = False


def run_cohort(
    cohort: Cohort,
    clients: Callable[[], AbstractContextManager[Client]],
    searching: Callable[[int, str], None],
    tick: Callable[[State], None],
) -> State:
    """Run ``cohort`` on the workers of ``clients()``, which are not started when there is nothing to do.

    ``searching(files, text)`` is called while the input is looked through, ``tick(state)`` about twice a second after.
    The report is written at the end, whatever the end is. Raises UserError where the run cannot begin or go on; the
    ledger then holds all that was done.
    """
    out = Path(cohort.settings.out)
    prepare(out)
    with locked(out / LOCK):
        _require_room(out)
        ledger = Ledger(out / LEDGER)
        try:
            return _run(cohort, out, ledger, clients, searching, tick)
        finally:
            ledger.close()


def _run(
    cohort: Cohort,
    out: Path,
    ledger: Ledger,
    clients: Callable[[], AbstractContextManager[Client]],
    searching: Callable[[int, str], None],
    tick: Callable[[State], None],
) -> State:
    ledger.begin(cohort.settings.identity())
    _remove_unfinished(out / CASES)
    found = find(cohort.source, out, cohort.rules, searching)
    ledger.enter(found.cases, found.rejected, cohort.retry_failed)
    ledger.note("strays", str(found.strays))
    ledger.note("source", readable(str(cohort.source.absolute())))
    ledger.note("model", cohort.model)
    pending = ledger.pending()
    cases = [case for case in found.cases if case.key in pending]
    state = State(len(found.cases) + len(found.rejected), {PENDING: 0, **ledger.counts()})
    try:
        if cases:
            _segment(cohort, out, ledger, cases, clients, state, tick)
        state.running = 0
        tick(state)
    except BaseException as error:
        # What ended the run says more than that this could not be written either, as on a full disk.
        with suppress(OutputError):
            ledger.note(ENDED_EARLY, error.problem if isinstance(error, UserError) else "It was cancelled.")
            write_report(out / REPORT, ledger, cohort.vocabulary, out / CASES)
        raise
    ledger.note(ENDED_EARLY, "")
    write_report(out / REPORT, ledger, cohort.vocabulary, out / CASES)
    return state


def _segment(
    cohort: Cohort,
    out: Path,
    ledger: Ledger,
    cases: list[Case],
    clients: Callable[[], AbstractContextManager[Client]],
    state: State,
    tick: Callable[[State], None],
) -> None:
    sources = {case.key: case.source for case in cases}
    with clients() as client:
        require_shared_folders(client, [str(out), cohort.settings.bundle, str(cohort.source.absolute())])
        state.dashboard = client.dashboard_link

        def show(running: int) -> None:
            state.running = running
            tick(state)

        for outcome in outcomes(client, cases, cohort.settings, show):
            ledger.finish(outcome)
            state.note(sources[outcome.key], outcome.status, outcome.reason)
    # A worker that the system ended, for want of memory say, could not do it.
    _remove_unfinished(out / CASES)


def _remove_unfinished(cases: Path) -> None:
    """What a run or a worker that was killed had begun to write."""
    for entry in os.scandir(cases):
        if entry.name.startswith(".") and _PARTIAL in entry.name:
            remove_folder(Path(entry.path))


def _require_room(out: Path) -> None:
    free = shutil.disk_usage(out).free
    if free < _SMALLEST_FREE_BYTES:
        raise OutputError(
            f"The disk of {out} is full: {free / 1e6:.0f} MB are free.",
            "Free some space, or choose a folder on another disk.",
        )
