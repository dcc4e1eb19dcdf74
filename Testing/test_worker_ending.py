"""Cancelled, asked to quit, abandoned or killed, the worker exits within a second and leaves no files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from dcaseg.models.bundle import Bundle, save_bundle
from dcaseg.worker.protocol import Done, Log, Progress, Quit, WasCancelled, decode_event, encode
from worker_client import COMMAND, EVERYTHING, MANY_WINDOWS, Worker, is_gone, worker_environment

pytest_plugins = ("worker_cases",)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="ends processes by signals")


@pytest.fixture
def worker():
    worker = Worker()
    worker.next_event()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def slow_bundle(small_bundle, tmp_path_factory):
    """The small bundle on a finer grid, with windows so large that each takes seconds."""
    bundle = Bundle.load(small_bundle)
    metadata = replace(bundle.metadata, name="slow", spacing=(3.0, 3.0, 3.0), patch=(144, 144, 144))
    return save_bundle(tmp_path_factory.mktemp("slow") / "slow", bundle.network(), metadata).folder


def cancel_and_time(worker):
    """Cancel run 1; return the remaining events, and the seconds until the worker exited."""
    started = time.monotonic()
    worker.cancel()
    assert worker.wait() == 0
    return worker.rest(), time.monotonic() - started


# Each test starts a worker, and PyTorch takes seconds to load, so the short phases are left to the slow tests.
PHASES = [
    pytest.param("Checking the model", EVERYTHING, id="checking the model", marks=pytest.mark.slow),
    pytest.param("Reading the CT", EVERYTHING, id="reading", marks=pytest.mark.slow),
    pytest.param("Resampling", EVERYTHING, id="resampling", marks=pytest.mark.slow),
    pytest.param("Segmenting window 3 ", MANY_WINDOWS, id="network"),
    pytest.param("Writing the results", EVERYTHING, id="writing"),
]


@pytest.mark.parametrize(("message", "options"), PHASES)
def test_cancel_in_any_phase_ends_the_worker_within_a_second_and_leaves_nothing(
    worker, request_for, large_ct, tmp_path, message, options
):
    worker.write(encode(request_for(ct=str(large_ct), options=options)))
    worker.wait_for_progress(message)
    events, seconds = cancel_and_time(worker)
    assert events[-1] == WasCancelled("1")
    assert all(isinstance(event, Progress | Log) for event in events[:-1])
    assert seconds < 1
    assert list(tmp_path.iterdir()) == []


def test_cancel_does_not_wait_for_a_slow_window(worker, request_for, slow_bundle, large_ct, tmp_path):
    worker.write(encode(request_for(bundle=str(slow_bundle), ct=str(large_ct))))
    worker.wait_for_progress("Segmenting window 1 ")
    time.sleep(0.2)
    events, seconds = cancel_and_time(worker)
    assert events == [WasCancelled("1")]
    assert seconds < 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_created_meanwhile_by_another_program_stays(worker, request_for, tmp_path):
    worker.write(encode(request_for(options=MANY_WINDOWS)))
    worker.wait_for_progress("Segmenting window 2 ")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "thesis.txt").write_text("years of work")
    events, _ = cancel_and_time(worker)
    assert events[-1] == WasCancelled("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["result", "thesis.txt"]


def request_to_quit(worker):
    worker.write(encode(Quit()))


def end_of_input(worker):
    worker.process.stdin.close()


@pytest.mark.parametrize("end", [pytest.param(request_to_quit, marks=pytest.mark.slow), end_of_input])
def test_ending_during_a_run_leaves_only_earlier_results(worker, request_for, tmp_path, end):
    earlier = request_for("0", out=str(tmp_path / "earlier"))
    assert isinstance(worker.segment(earlier), Done)
    worker.write(encode(request_for(options=MANY_WINDOWS)))
    worker.wait_for_progress("Segmenting window 2 ")
    started = time.monotonic()
    end(worker)
    assert worker.wait() == 0
    assert time.monotonic() - started < 1
    assert not any(isinstance(event, Done) for event in worker.rest())
    assert list(tmp_path.iterdir()) == [tmp_path / "earlier"]


# A parent process between this test and the worker, to be killed. It starts the worker on its own streams and waits.
PARENT = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); sys.stdin = None; time.sleep(60)"


@pytest.fixture
def orphan(request_for):
    """A worker during a run whose parent was killed; ``input`` is the other end of its standard input."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=worker_environment(),
    )
    pid = decode_event(parent.stdout.readline()).pid
    parent.stdin.write(encode(request_for(options=MANY_WINDOWS)))
    parent.stdin.flush()
    while b"Segmenting window 2 " not in (line := parent.stdout.readline()):
        assert line, "the worker has ended"
    parent.kill()
    parent.wait()
    yield pid
    parent.stdin.close()
    parent.stdout.close()


def test_the_worker_ends_with_its_parent_even_if_its_input_stays_open(orphan, tmp_path):
    # The other end of the worker's input is still open in this process.
    assert is_gone(orphan, seconds=3)
    assert list(tmp_path.iterdir()) == []


def test_the_worker_leads_a_process_group_that_can_be_ended_as_a_whole(worker):
    assert os.getpgid(worker.process.pid) == worker.process.pid
    assert os.getpgid(worker.process.pid) != os.getpgid(0)
