"""What a run shows of itself while it runs: counts, rate, time left."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("distributed", reason="the extra cohort is not installed")

from rich.console import Console

from dcaseg.cli import cohort as command
from dcaseg.cohort import ledger as state_module
from dcaseg.cohort.ledger import State


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(state_module, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def state(clock) -> State:
    """Ten cases, of which four came to an end, one every 30 s."""
    found = State(12, {"pending": 10, "skipped": 2}, dashboard="http://127.0.0.1:8787/status", started=clock[0])
    for number, (status, reason) in enumerate([("ok", ""), ("ok", ""), ("failed", "lacks 1 slice"), ("ok", "")]):
        clock[0] += 30
        found.note(f"P{number}/ct", status, reason)
    found.running = 2
    return found


def test_rate_and_time_left_are_those_of_the_last_cases(state, clock):
    assert state.per_hour == pytest.approx(120)
    assert state.left == 6
    assert state.seconds_left == pytest.approx(180)
    assert state.seconds == pytest.approx(120)
    # Fast ones after many slow ones: the rate follows.
    for _ in range(51):
        clock[0] += 1
        state.counts["pending"] += 1
        state.note("x", "ok", "")
    assert state.per_hour == pytest.approx(3600)


def test_nothing_is_said_of_a_rate_before_there_is_one(clock):
    state = State(3, {"pending": 3})
    assert (state.per_hour, state.seconds_left) == (None, None)
    state.note("a", "ok", "")
    assert state.per_hour is None
    assert "rate not known yet" in shown(state)


def test_the_table_shows_counts_rate_time_left_and_what_happened_last(state):
    text = shown(state)
    header, row = (next(line for line in text.splitlines() if word in line) for word in ("Time left", "120 cases"))
    columns = [column.strip() for column in header.split("┃")[1:-1]]
    values = dict(zip(columns, (value.strip() for value in row.split("│")[1:-1]), strict=True))
    assert values == {
        "OK": "3", "Skipped": "2", "Failed": "1", "Left": "6", "Running": "2",
        "Rate": "120 cases per hour", "Elapsed": "0:02:00", "Time left": "0:03:00",
    }  # fmt: skip
    assert "failed  P2/ct  lacks 1 slice" in text
    assert "http://127.0.0.1:8787/status" in text


def test_names_of_files_cannot_command_the_terminal(state):
    state.note("a\nb\x1b[2J", "ok", "")
    assert "ok      a\\nb\\x1b[2J" in shown(state)


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(state, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    searching, tick = command._occasional_lines(Console(file=stream, width=200))
    for _ in range(4):
        now[0] += 11
        tick(state)
    searching(400, "P1")
    assert stream.getvalue().splitlines() == ["6 of 12  120 cases per hour, 0:03:00 left"] * 2


def shown(state: State) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(command._table(state))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_names_the_cases_at_work(state):
    state.at_work = ("P7/ct", "P8/[red]ct\x1b[2J")
    text = shown(state)
    assert "running P7/ct" in text and "running P8/[red]ct\\x1b[2J" in text
    state.at_work = tuple(f"P{number}" for number in range(20))
    assert "and 14 more" in shown(state)
