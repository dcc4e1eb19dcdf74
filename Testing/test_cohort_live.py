"""The live display of a run: counts, rate and time left."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("distributed", reason="the extra cohort is not installed")

from rich.console import Console

from dcaseg.cli import cohort as command
from dcaseg.cohort import ledger as state_module
from dcaseg.cohort.ledger import RunProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only advances when a test changes it."""
    now = [100.0]
    monkeypatch.setattr(state_module, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def state(clock) -> RunProgress:
    """Ten cases, of which four have finished, one every 30 s."""
    found = RunProgress(12, {"pending": 10, "skipped": 2}, dashboard="http://127.0.0.1:8787/status", started=clock[0])
    for number, (status, reason) in enumerate([("ok", ""), ("ok", ""), ("failed", "is missing 1 slice"), ("ok", "")]):
        clock[0] += 30
        found.note(f"P{number}/ct", status, reason)
    found.running = 2
    return found


def test_rate_and_time_left_follow_the_last_cases(state, clock):
    assert state.per_hour == pytest.approx(120)
    assert state.left == 6
    assert state.seconds_left == pytest.approx(180)
    assert state.seconds == pytest.approx(120)
    # The rate follows a change from slow to fast cases.
    for _ in range(51):
        clock[0] += 1
        state.counts["pending"] += 1
        state.note("x", "ok", "")
    assert state.per_hour == pytest.approx(3600)


def test_the_rate_is_unknown_at_first(clock):
    state = RunProgress(3, {"pending": 3})
    assert (state.per_hour, state.seconds_left) == (None, None)
    state.note("a", "ok", "")
    assert state.per_hour is None
    assert "rate not known yet" in shown(state)


def test_the_table_shows_counts_rate_time_left_and_the_last_cases(state):
    text = shown(state)
    header, row = (next(line for line in text.splitlines() if word in line) for word in ("Time left", "120 cases"))
    columns = [column.strip() for column in header.split("┃")[1:-1]]
    values = dict(zip(columns, (value.strip() for value in row.split("│")[1:-1]), strict=True))
    assert values == {
        "OK": "3", "Skipped": "2", "Failed": "1", "Left": "6", "Running": "2",
        "Rate": "120 cases per hour", "Elapsed": "0:02:00", "Time left": "0:03:00",
    }  # fmt: skip
    assert "failed  P2/ct  is missing 1 slice" in text
    assert "http://127.0.0.1:8787/status" in text


def test_file_names_cannot_control_the_terminal(state):
    state.note("a\nb\x1b[2J", "ok", "")
    assert "ok      a\\nb\\x1b[2J" in shown(state)


def test_without_a_terminal_occasional_lines_report_progress(state, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    searching, tick = command._make_progress_printers(Console(file=stream, width=200))
    for _ in range(4):
        now[0] += 11
        tick(state)
    searching(400, "P1")
    assert stream.getvalue().splitlines() == ["6 of 12 done, 120 cases per hour, 0:03:00 left"] * 2


def shown(state: RunProgress) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(command._make_state_table(state))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_names_the_running_cases(state):
    state.at_work = ("P7/ct", "P8/[red]ct\x1b[2J")
    text = shown(state)
    assert "running P7/ct" in text and "running P8/[red]ct\\x1b[2J" in text
    state.at_work = tuple(f"P{number}" for number in range(20))
    assert "and 14 more" in shown(state)
