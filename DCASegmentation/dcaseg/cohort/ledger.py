"""The ledger of a cohort, an SQLite file with the status of every case, and the progress of a run.

Only the main program writes it, never a worker. Each change is a transaction, so the ledger survives any crash.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import monotonic
from typing import Any

from ..errors import OutputError
from ..json_io import parse_json
from .case import FAILED, PENDING, Case, Outcome, Rejected

# Number of cases the rate is measured over. Only recent ones count, since a cohort may start with its small cases.
_RECENT = 50


@dataclass
class RunProgress:
    """The progress of a run, for a live display.

    ``recent`` holds (source, status, reason) of the last finished cases, ``at_work`` the sources of the running cases.
    ``messages`` names what could not be written at the end.
    """

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    running: int = 0
    at_work: tuple[str, ...] = ()
    messages: list[str] = field(default_factory=list)
    dashboard: str = ""
    recent: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=6))
    started: float = field(default_factory=monotonic)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT + 1))

    def note(self, source: str, status: str, reason: str) -> None:
        """Count a finished case."""
        self._times.append(monotonic())
        self.recent.append((source, status, reason))
        self.counts[status] = self.counts.get(status, 0) + 1
        self.counts["pending"] -= 1

    @property
    def left(self) -> int:
        """Number of cases without an outcome."""
        return self.counts.get("pending", 0)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return monotonic() - self.started

    @property
    def per_hour(self) -> float | None:
        """Cases per hour at the current rate; None until it is known."""
        if len(self._times) < 2:
            return None
        span = self._times[-1] - self._times[0]
        return 3600 * (len(self._times) - 1) / span if span > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the current rate; None until it is known."""
        return None if self.per_hour is None else self.left / self.per_hour * 3600


# Key of the note on why the last run ended early.
ENDED_EARLY = "ended_early"

# The message of an error is decoded, too, and may quote a damaged file.
_SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cases (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, patient TEXT NOT NULL, study_date TEXT NOT NULL,
    description TEXT NOT NULL, slices INTEGER NOT NULL, fingerprint TEXT NOT NULL, status TEXT NOT NULL,
    reason TEXT NOT NULL, again INTEGER NOT NULL, notes TEXT NOT NULL, outcome TEXT NOT NULL, seen INTEGER NOT NULL,
    finished TEXT
);
"""
_COLUMNS = (
    *("key", "name", "source", "patient", "study_date", "description", "slices", "fingerprint", "status", "reason"),
    *("again", "notes", "outcome", "seen", "finished"),
)


@dataclass(frozen=True)
class Entry:
    """A row of the ledger. ``outcome`` is None until the case is processed. ``slices`` counts the files of the case.

    It is 1 for an image file and 0 for a rejected input.
    """

    key: str
    name: str
    source: str
    patient: str
    study_date: str
    description: str
    slices: int
    status: str
    reason: str
    notes: tuple[str, ...]
    outcome: Outcome | None


class Ledger:
    """The SQLite file ``file``, created if it does not exist.

    All methods raise OutputError if the file is not a ledger, is damaged or cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._run = 0
        try:
            self._connection = sqlite3.connect(file, isolation_level=None)
        except _SQLITE_ERRORS as error:
            raise OutputError(
                f"{file} cannot be opened: {error}.", "Check the folder's permissions, or choose another with -o."
            ) from None
        try:
            # A commit must reach the disk before the next case starts.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLES)
            check = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if check != ("ok",):
                raise self._make_damaged_error(check)
            # If another program wrote the file, the error names the column that is missing.
            self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM cases LIMIT 0")
            self._connection.execute("SELECT key, value FROM about LIMIT 0")
        except _SQLITE_ERRORS as error:
            self._connection.close()
            raise self._make_damaged_error(error) from None
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def begin(self, identity: dict[str, Any]) -> None:
        """Start a run with settings of this ``identity``.

        Raises OutputError if an earlier run of the cohort had other settings.
        """
        encoded = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
        with self._transaction():
            earlier = self.read_note("identity")
            if earlier not in ("", encoded):
                raise OutputError(
                    "This cohort was started with a different model or different options.",
                    "Choose another folder with -o, or use the same model and options.",
                )
            earlier_runs = self.read_note("run") or "0"
            if not earlier_runs.isdecimal() or len(earlier_runs) > 9:
                raise self._make_damaged_error("the number of runs is invalid")
            self._run = int(earlier_runs) + 1
            self._note("identity", encoded)
            self._note("run", str(self._run))

    def read_note(self, key: str) -> str:
        """The note ``key`` on the whole cohort; empty if there is no such note."""
        rows = self._fetch_rows("SELECT value FROM about WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else ""

    def note(self, key: str, value: str) -> None:
        """Write a note on the whole cohort."""
        with self._transaction():
            self._note(key, value)

    def enter(self, cases: Iterable[Case], rejected: Iterable[Rejected], retry_failed: bool = False) -> None:
        """Enter the cases and rejected inputs that this run found.

        New and changed cases, cases to retry, and with ``retry_failed`` all failed cases become pending. Entries of
        earlier runs that this run did not find are removed unless they have results.
        """
        with self._transaction():
            for case in cases:
                self._enter_case(case, retry_failed)
            for entry in rejected:
                self._put(entry.key, "", entry, 0, "", entry.status, entry.reason, ())
            self._connection.execute("DELETE FROM cases WHERE seen < ? AND status != 'ok'", (self._run,))

    def get_pending_keys(self) -> set[str]:
        """Keys of the cases without an outcome."""
        return {key for (key,) in self._fetch_rows("SELECT key FROM cases WHERE status = ?", (PENDING,))}

    def finish(self, outcome: Outcome) -> None:
        """Record the outcome of a case."""
        encoded = json.dumps(asdict(outcome))
        with self._transaction():
            self._connection.execute(
                "UPDATE cases SET status = ?, reason = ?, again = ?, outcome = ?, finished = datetime('now')"
                " WHERE key = ?",
                (outcome.status, outcome.reason, int(outcome.again), encoded, outcome.key),
            )

    def count_by_status(self) -> dict[str, int]:
        """Number of entries by status."""
        return dict(self._fetch_rows("SELECT status, COUNT(*) FROM cases GROUP BY status"))

    def iter_entries(self) -> Iterator[Entry]:
        """Yield all entries, sorted by source."""
        names = [column.name for column in fields(Entry)]
        for row in self._fetch_rows(f"SELECT {', '.join(names)} FROM cases ORDER BY source, description, key"):
            values = dict(zip(names, row, strict=True))
            try:
                values["notes"] = tuple(map(str, parse_json(values["notes"])))
                values["outcome"] = Outcome.from_json(parse_json(values["outcome"])) if values["outcome"] else None
            except (ValueError, TypeError, AttributeError) as error:
                raise self._make_damaged_error(error) from None
            yield Entry(**values)

    def _enter_case(self, case: Case, retry_failed: bool) -> None:
        row = self._connection.execute(
            "SELECT fingerprint, status, again FROM cases WHERE key = ?", (case.key,)
        ).fetchone()
        if row is not None:
            fingerprint, status, again = row
            redo = again or (retry_failed and status == FAILED)
            if fingerprint == case.fingerprint and not redo:
                self._connection.execute("UPDATE cases SET seen = ? WHERE key = ?", (self._run, case.key))
                return
        self._put(case.key, case.name, case, len(case.files), case.fingerprint, PENDING, "", case.notes)

    def _put(
        self,
        key: str,
        name: str,
        about: Case | Rejected,
        slices: int,
        fingerprint: str,
        status: str,
        reason: str,
        notes: tuple[str, ...],
    ) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, '', ?, NULL)",
            (
                *(key, name, about.source, about.patient, about.study_date, about.description, slices, fingerprint),
                *(status, reason, json.dumps(notes), self._run),
            ),
        )

    def _note(self, key: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))

    def _fetch_rows(self, query: str, values: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except _SQLITE_ERRORS as error:
            raise self._make_damaged_error(error) from None

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection, self._file)

    def _make_damaged_error(self, why: object) -> OutputError:
        return OutputError(
            f"{self._file} is not a cohort ledger, or it is damaged: {why}.",
            "Move it elsewhere and run the same command again: finished cases are recovered from their folders.",
        )


class _Transaction:
    """Applies all changes in a ``with`` block or none. Raises OutputError if they cannot be written."""

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._connection = connection
        self._file = file

    def __enter__(self) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except _SQLITE_ERRORS as error:
            raise self._make_write_error(error) from None

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._connection.execute("COMMIT" if error_type is None else "ROLLBACK")
        except _SQLITE_ERRORS as failure:
            if error_type is None:
                raise self._make_write_error(failure) from None
        if isinstance(error, _SQLITE_ERRORS):
            raise self._make_write_error(error) from None

    def _make_write_error(self, error: Exception) -> OutputError:
        return OutputError(
            f"{self._file} cannot be written: {error}.", "Free some space on its disk, then run the same command again."
        )
