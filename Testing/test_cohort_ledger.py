"""The ledger of a cohort, its lock, and the ranking of cases to check."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from dcaseg.cohort.case import Case, Outcome, Rejected
from dcaseg.cohort.ledger import Ledger
from dcaseg.cohort.report import compute_distance_from_range, rank_concerns
from dcaseg.errors import OutputError
from dcaseg.file_lock import locked
from dcaseg.organs import AMOS

IDENTITY = {"weights": "ab", "overlap": 0.5}
USUAL = {organ.key: sum(organ.volume_ml) / 2 for organ in AMOS}


def case(key: str, fingerprint: str = "1") -> Case:
    return Case(key, f"name-{key}", f"source-{key}", (f"/{key}.nrrd",), False, fingerprint)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "cohort.sqlite"


def begun(file: Path, *cases: Case, rejected: tuple[Rejected, ...] = (), retry_failed: bool = False) -> Ledger:
    ledger = Ledger(file)
    ledger.begin(IDENTITY)
    ledger.enter(cases, rejected, retry_failed)
    return ledger


def test_a_later_run_resumes_with_the_pending_cases(file):
    ledger = begun(file, case("a"), case("b"), rejected=(Rejected("c", "c", "skipped", "localizer"),))
    ledger.finish(Outcome("a", "ok", volumes_ml={"liver": 1500.0}, concerns=("x",), notes=("y",)))
    ledger.close()
    again = begun(file, case("a"), case("b"))
    assert again.get_pending_keys() == {"b"}
    entry = next(entry for entry in again.iter_entries() if entry.key == "a")
    assert entry.outcome == Outcome("a", "ok", volumes_ml={"liver": 1500.0}, concerns=("x",), notes=("y",))


def test_a_changed_case_is_processed_again(file):
    begun(file, case("a")).finish(Outcome("a", "ok"))
    assert begun(file, case("a", fingerprint="2")).get_pending_keys() == {"a"}


def test_disk_and_worker_failures_are_retried_case_failures_only_on_request(file):
    ledger = begun(file, case("disk"), case("torn"))
    ledger.finish(Outcome("disk", "failed", "The disk is full.", again=True))
    ledger.finish(Outcome("torn", "failed", "incomplete"))
    assert begun(file, case("disk"), case("torn")).get_pending_keys() == {"disk"}
    assert begun(file, case("disk"), case("torn"), retry_failed=True).get_pending_keys() == {"disk", "torn"}


def test_cases_that_are_gone_are_removed_unless_they_have_results(file):
    ledger = begun(file, case("done"), case("gone"), rejected=(Rejected("bad", "bad", "failed", "damaged"),))
    ledger.finish(Outcome("done", "ok"))
    assert [entry.key for entry in begun(file, case("new")).iter_entries()] == ["done", "new"]


def test_a_different_model_or_different_options_are_rejected(file):
    begun(file, case("a")).close()
    with pytest.raises(OutputError, match="a different model or different options"):
        Ledger(file).begin({**IDENTITY, "overlap": 0.25})


def test_a_change_is_applied_completely_or_not_at_all(file):
    ledger = begun(file, case("a"))
    with pytest.raises(AttributeError):
        ledger.enter([case("b"), None], ())
    assert ledger.get_pending_keys() == {"a"}


def test_a_file_that_is_not_a_ledger_is_rejected(file):
    file.write_text("no ledger " * 200)
    with pytest.raises(OutputError, match="is not a cohort ledger"):
        Ledger(file)


def test_the_lock_is_free_again_after_a_kill(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from dcaseg.file_lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match="Another run is using"), locked(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock"):
        pass


def test_volumes_outside_the_usual_range_rank_first(file):
    ledger = begun(file, *map(case, "abc"))
    ledger.finish(Outcome("a", "ok", volumes_ml=USUAL))
    ledger.finish(Outcome("b", "ok", volumes_ml={**USUAL, "liver": 3000.0}))
    ledger.finish(Outcome("c", "ok", volumes_ml={**USUAL, "liver": 100.0, "spleen": 0.0}))
    found = rank_concerns(list(ledger.iter_entries()), AMOS)
    assert [one.entry.key for one in found] == ["c", "b"]
    assert found[0].reasons == ("Spleen not found", "Liver 100 ml, below the usual range of 800 to 2600 ml")


def test_large_volumes_are_shown_without_exponents(file):
    ledger = begun(file, case("a"))
    ledger.finish(Outcome("a", "ok", volumes_ml={**USUAL, "liver": 33723.4}))
    (found,) = rank_concerns(list(ledger.iter_entries()), AMOS)
    assert found.reasons == ("Liver 33700 ml, above the usual range of 800 to 2600 ml",)


def test_a_review_ranks_before_volumes(file):
    ledger = begun(file, *map(case, "abc"))
    ledger.finish(Outcome("a", "ok", volumes_ml={**USUAL, "spleen": 0.0}))
    ledger.finish(Outcome("b", "ok", volumes_ml=USUAL, concern=3.0, concerns=("Liver: uncertain",)))
    ledger.finish(Outcome("c", "ok", volumes_ml=USUAL, concern=30.0, concerns=("Aorta: hole",)))
    found = rank_concerns(list(ledger.iter_entries()), AMOS)
    assert [(one.entry.key, one.reviewed) for one in found] == [("c", True), ("b", True), ("a", False)]


def test_off_range_is_zero_inside_and_bounded_below():
    liver = AMOS.by_key["liver"]
    assert compute_distance_from_range(1500.0, liver) == 0
    assert compute_distance_from_range(5200.0, liver) == pytest.approx(0.693, abs=1e-3)
    assert (
        compute_distance_from_range(0.0, liver)
        == compute_distance_from_range(1e-6, liver)
        < compute_distance_from_range(400.0, liver)
        < 0
    )


def test_an_outcome_keeps_all_its_fields(file):
    outcome = Outcome("a", "failed", "why", True, ("n",), {"liver": 1.5}, {"total": 2.0}, 1.0, ("c",), "host:1", 1, 9.5)
    ledger = begun(file, case("a"))
    ledger.finish(outcome)
    assert next(ledger.iter_entries()).outcome == outcome == replace(outcome)


def _other_table(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE cases (id INTEGER)")


def _changed(statement: str):
    def change(file: Path) -> None:
        begun(file, case("a")).finish(Outcome("a", "ok"))
        with sqlite3.connect(file) as connection:
            connection.execute(statement)

    return change


def _torn(file: Path) -> None:
    begun(file, *(case(str(number)) for number in range(300))).close()
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = bytes(len(content) // 3)
    file.write_bytes(content)


BROKEN = {
    "text": lambda file: file.write_text("case,status"),
    "noise": lambda file: file.write_bytes(bytes(range(256)) * 100),
    "a folder": lambda file: file.mkdir(),
    "of another program": _other_table,
    "torn": _torn,
    "outcome is not JSON": _changed("UPDATE cases SET outcome = '{'"),
    "outcome is deep": _changed(f"UPDATE cases SET outcome = '{'[' * 100_000}'"),
    "outcome is a list": _changed("UPDATE cases SET outcome = '[1]'"),
    "outcome of wrong types": _changed('UPDATE cases SET outcome = \'{"key": 1, "notes": [], "concerns": []}\''),
    "notes are not a list": _changed("UPDATE cases SET notes = '7'"),
    "notes are bytes": _changed("UPDATE cases SET notes = x'ff00'"),
    "run is not a number": _changed("UPDATE about SET value = 'first' WHERE key = 'run'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_ledger_gives_a_one_line_error_with_a_remedy(file, kind):
    BROKEN[kind](file)
    with pytest.raises(OutputError) as refused:
        ledger = begun(file, case("b"))
        list(ledger.iter_entries())
    assert "\n" not in str(refused.value) and refused.value.remedy


@pytest.mark.parametrize("kind", ["noise", "a folder"])
def test_a_broken_lock_gives_a_one_line_error(file, kind):
    BROKEN[kind](file)
    with pytest.raises(OutputError) as refused, locked(file):
        pass
    assert refused.value.remedy


def test_a_damaged_outcome_is_rejected():
    good = asdict(Outcome("a", "ok", notes=("x",), volumes_ml={"liver": 1.0}, concern=0.5))
    assert Outcome.from_json(json.loads(json.dumps(good))) == Outcome(**good)
    for change in (
        {"status": "fine"}, {"notes": 3}, {"notes": [3]}, {"volumes_ml": {"liver": "much"}}, {"seconds": [1]},
        {"concern": "high"}, {"surprise": 1}, {"reason": None},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="invalid outcome"):
            Outcome.from_json({**good, **change})
    for content in (None, 3, [], "text", {}):
        with pytest.raises(ValueError, match="invalid outcome"):
            Outcome.from_json(content)


def test_a_damaged_ledger_whose_error_quotes_other_bytes_is_refused(tmp_path):
    """SQLite quotes the damaged schema in its message, which Python cannot decode then."""
    file = tmp_path / "cohort.sqlite"
    Ledger(file).close()
    content = bytearray(file.read_bytes())
    # The row of the index that SQLite makes for the table: its name and that of its table.
    at = content.index(b"indexsqlite_autoindex_cases") + len("indexsq")
    content[at : at + 4] = b"\xff" * 4
    file.write_bytes(content)
    with pytest.raises(OutputError, match="is damaged"):
        Ledger(file)
    # A lock needs no schema; it may be accepted or refused.
    with suppress(OutputError), locked(file):
        pass
