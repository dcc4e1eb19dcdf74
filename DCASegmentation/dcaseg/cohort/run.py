"""Runs a cohort from its input to its report, or resumes a run that stopped early."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from distributed import Client

from ..dicom.archive import Rules
from ..errors import OutputError, UserError
from ..file_lock import locked
from ..imaging.file_errors import exists
from ..imaging.writers import make_private
from ..inference.pipeline import optional
from ..organs import Vocabulary
from ..temp_paths import clean
from .case import CASES, LEDGER, LOCK, PENDING, REPORT, VOLUMES, Case, Settings, prepare, replace_undecodable_bytes
from .dask_workers import require_shared_folders
from .discovery import find, require_source
from .dispatch import process_cases
from .ledger import ENDED_EARLY, Ledger, RunProgress
from .pseudonyms import Pseudonyms, get_or_create_key, read_key, redact_names
from .report import write_report, write_volumes

_MIN_FREE_BYTES = 50_000_000
_SOURCE = "source"


@dataclass(frozen=True)
class Cohort:
    """The CTs in ``source`` and the ``settings`` to segment them with; ``model`` and ``vocabulary`` are the model's.

    ``retry_failed`` also retries cases that failed in an earlier run because of the CT itself. With ``pseudonymize``,
    patients are replaced by pseudonyms, made with the key in ``pseudonym_key`` or, by default, in the cohort's folder.
    """

    source: Path
    settings: Settings
    rules: Rules
    vocabulary: Vocabulary
    model: str
    retry_failed: bool = False
    pseudonym_key: Path | None = None
    pseudonymize: bool = False


def run_cohort(
    cohort: Cohort,
    clients: Callable[[], AbstractContextManager[Client]],
    searching: Callable[[int, str], None],
    tick: Callable[[RunProgress], None],
) -> RunProgress:
    """Run ``cohort`` on the workers of ``clients()``, which start only if there is something to do.

    ``searching(files, text)`` is called during the search of the input, then ``tick(state)`` about twice a second. The
    report is written at the end even if the run fails. Raises UserError if the run cannot start or continue; the
    ledger then contains all finished cases.
    """
    # Before anything is written: a mistyped path must not leave an empty cohort.
    require_source(cohort.source)
    given_key = None if cohort.pseudonym_key is None else read_key(cohort.pseudonym_key)
    out = Path(cohort.settings.out)
    prepare(out, cohort.settings.shared)
    if not cohort.settings.shared:
        # SQLite gives its journals the permissions of the database.
        for name in (LOCK, LEDGER):
            (out / name).touch(mode=0o600)
    with locked(out / LOCK):
        _keep_private(cohort, out)
        _require_room(out)
        pseudonyms = None
        if cohort.pseudonymize:
            pseudonyms = Pseudonyms(get_or_create_key(out) if given_key is None else given_key)
            cohort = replace(cohort, settings=replace(cohort.settings, pseudonyms=pseudonyms.key_id))
        ledger = Ledger(out / LEDGER)
        _keep_private(cohort, out)
        try:
            return _run(cohort, out, ledger, pseudonyms, clients, searching, tick)
        finally:
            ledger.close()


def _require_same_input(cohort: Cohort, ledger: Ledger) -> None:
    """Raise OutputError if an earlier run had another input folder.

    CTs with the same path in both would be taken for the same CT, and replace its results. A folder that is gone may
    have been moved. With pseudonyms, no path is recorded.
    """
    earlier = ledger.read_note(_SOURCE)
    if earlier and exists(Path(earlier)) and not Path(earlier).samefile(cohort.source):
        raise OutputError(
            f"{cohort.settings.out} is the cohort of another folder, {earlier}.", "Choose another output folder."
        )


def _run(
    cohort: Cohort,
    out: Path,
    ledger: Ledger,
    pseudonyms: Pseudonyms | None,
    clients: Callable[[], AbstractContextManager[Client]],
    searching: Callable[[int, str], None],
    tick: Callable[[RunProgress], None],
) -> RunProgress:
    ledger.begin(cohort.settings.get_identity())
    # The lock is held, so partial files are left over from killed runs or workers.
    clean(out / CASES, only_writer=True)
    found = find(cohort.source, out, cohort.rules, searching)
    source = replace_undecodable_bytes(str(cohort.source.absolute()))
    _require_same_input(cohort, ledger)
    if pseudonyms is not None:
        found.cases = [pseudonyms.pseudonymize_case(case) for case in found.cases]
        found.rejected = [pseudonyms.pseudonymize_rejected(entry, cohort.source.absolute()) for entry in found.rejected]
        source = ""
    ledger.enter(found.cases, found.rejected, cohort.retry_failed)
    ledger.note("strays", str(found.ignored_files))
    ledger.note(_SOURCE, source)
    ledger.note("model", cohort.model)
    pending = ledger.get_pending_keys()
    cases = [case for case in found.cases if case.key in pending]
    state = RunProgress(len(found.cases) + len(found.rejected), {PENDING: 0, **ledger.count_by_status()})
    try:
        if cases:
            _segment(cohort, out, ledger, cases, clients, state, tick)
        state.running, state.at_work = 0, ()
        tick(state)
    except BaseException as error:
        # If this note cannot be written either, as on a full disk, the original error is the one to show.
        with suppress(OutputError):
            reason = error.problem if isinstance(error, UserError) else "It was canceled."
            if pseudonyms is not None:
                reason = redact_names(reason, [str(cohort.source.absolute()), *cohort.source.absolute().parts[1:]])
            ledger.note(ENDED_EARLY, reason)
        _report(cohort, out, ledger, state)
        raise
    ledger.note(ENDED_EARLY, "")
    _report(cohort, out, ledger, state)
    return state


def _report(cohort: Cohort, out: Path, ledger: Ledger, state: RunProgress) -> None:
    """Write the report and the table of volumes. A failure becomes a message and does not affect the results."""
    with optional(VOLUMES, state.messages):
        write_volumes(out / VOLUMES, ledger, cohort.vocabulary)
    with optional(REPORT, state.messages):
        write_report(out / REPORT, ledger, cohort.vocabulary, out / CASES)
    _keep_private(cohort, out)


def _keep_private(cohort: Cohort, out: Path) -> None:
    if not cohort.settings.shared:
        for name in (LEDGER, LOCK, REPORT, VOLUMES):
            make_private(out / name)


def _segment(
    cohort: Cohort,
    out: Path,
    ledger: Ledger,
    cases: list[Case],
    clients: Callable[[], AbstractContextManager[Client]],
    state: RunProgress,
    tick: Callable[[RunProgress], None],
) -> None:
    sources = {case.key: case.source for case in cases}
    with clients() as client:
        require_shared_folders(client, [str(out), cohort.settings.bundle, str(cohort.source.absolute())])
        state.dashboard = client.dashboard_link

        def show(running: Sequence[str]) -> None:
            state.running = len(running)
            state.at_work = tuple(sources[key] for key in running)
            tick(state)

        for outcome in process_cases(client, cases, cohort.settings, show):
            ledger.finish(outcome)
            state.note(sources[outcome.key], outcome.status, outcome.reason)
    # Workers that the system killed left partial files.
    clean(out / CASES, only_writer=True)


def _require_room(out: Path) -> None:
    free = shutil.disk_usage(out).free
    if free < _MIN_FREE_BYTES:
        raise OutputError(
            f"The disk of {out} is full: only {free / 1e6:.0f} MB are free.",
            "Free some space, or choose a folder on another disk with -o.",
        )
