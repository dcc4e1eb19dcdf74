"""The account of a cohort in one SQLite file: every case, with what became of it and why.

The program alone writes it, a transaction for each change, so it is whole after any crash. Workers know nothing of it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .case import FAILED, PENDING, Case, Outcome, Rejected, outcome_from_json

# Why the last run ended before its last case; noted of the whole cohort.
ENDED_EARLY = "ended_early"

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


@dataclass(frozen=True)
class Entry:
    """A line of the ledger; ``outcome`` is None until there is one. ``slices`` is 1 for a file, 0 for no case."""

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
    """``file`` is made if there is none. Raises OutputError where it is no ledger or cannot be written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._run = 0
        try:
            self._connection = sqlite3.connect(file, isolation_level=None)
            # Whole on the disk before the next case: results are adopted by it.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLES)
        except sqlite3.Error as error:
            raise OutputError(f"{file} is no ledger of this program or cannot be written: {error}.", "") from None

    def close(self) -> None:
        self._connection.close()

    def begin(self, identity: dict[str, Any]) -> None:
        """Start a run with settings of this ``identity``. Raises OutputError if the cohort was begun with others."""
        told = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
        with self._change():
            earlier = self.about("identity")
            if earlier not in ("", told):
                raise OutputError(
                    "This cohort was begun with another model or other options.",
                    "Choose another folder with -o, or the same model and options.",
                )
            self._run = int(self.about("run") or 0) + 1
            self._note("identity", told)
            self._note("run", str(self._run))

    def about(self, key: str) -> str:
        """Something noted of the whole cohort; empty if it was not."""
        row = self._connection.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return "" if row is None else str(row[0])

    def note(self, key: str, value: str) -> None:
        """Note something of the whole cohort."""
        with self._change():
            self._note(key, value)

    def enter(self, cases: Iterable[Case], rejected: Iterable[Rejected], retry_failed: bool = False) -> None:
        """Take in what was found in this run.

        New cases, changed ones, those to be tried again, and with ``retry_failed`` all that failed become pending.
        What an earlier run found and this one does not is forgotten, unless it has results.
        """
        with self._change():
            for case in cases:
                self._enter_case(case, retry_failed)
            for each in rejected:
                self._put(each.key, "", each, 0, "", each.status, each.reason, ())
            self._connection.execute("DELETE FROM cases WHERE seen < ? AND status != 'ok'", (self._run,))

    def pending(self) -> set[str]:
        """Keys of the cases that have no outcome yet."""
        return {key for (key,) in self._connection.execute("SELECT key FROM cases WHERE status = ?", (PENDING,))}

    def finish(self, outcome: Outcome) -> None:
        """Note what became of a case."""
        told = json.dumps(asdict(outcome))
        with self._change():
            self._connection.execute(
                "UPDATE cases SET status = ?, reason = ?, again = ?, outcome = ?, finished = datetime('now')"
                " WHERE key = ?",
                (outcome.status, outcome.reason, int(outcome.again), told, outcome.key),
            )

    def counts(self) -> dict[str, int]:
        """How many entries have each status."""
        return dict(self._connection.execute("SELECT status, COUNT(*) FROM cases GROUP BY status"))

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order of their sources."""
        names = [each.name for each in fields(Entry)]
        for row in self._connection.execute(f"SELECT {', '.join(names)} FROM cases ORDER BY source, description, key"):
            values = dict(zip(names, row, strict=True))
            values["notes"] = tuple(json.loads(values["notes"]))
            values["outcome"] = _outcome(values["outcome"])
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

    def _change(self) -> _Transaction:
        return _Transaction(self._connection, self._file)


class _Transaction:
    """All of the changes in a ``with`` block, or none. Raises OutputError where they cannot be written."""

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._connection = connection
        self._file = file

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._connection.execute("COMMIT" if kind is None else "ROLLBACK")
        except sqlite3.Error as failure:
            if kind is None:
                raise self._refusal(failure) from None
        if isinstance(error, sqlite3.OperationalError):
            raise self._refusal(error) from None

    def _refusal(self, error: sqlite3.Error) -> OutputError:
        return OutputError(
            f"{self._file} cannot be written: {error}.", "Free some space on its disk, then run the same command again."
        )


def _outcome(text: str) -> Outcome | None:
    if not text:
        return None
    return outcome_from_json(json.loads(text))
