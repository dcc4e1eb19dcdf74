"""The panel's side of the worker: real processes controlled from Qt's event loop, and failing ones."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dcaseg import temp_paths
from dcaseg.worker.protocol import AddUnlabeledCT, Segment
from worker_client import MANY_WINDOWS, MODULE_FOLDER, is_gone

pytest_plugins = ("worker_cases",)
pytestmark = [pytest.mark.scene, pytest.mark.skipif(os.name != "posix", reason="ends processes by signals")]


class Outcome:
    """Records the callbacks of a run in order."""

    def __init__(self):
        self.progress = []
        self.ends = []

    @property
    def callbacks(self):
        return (
            lambda answer: self.ends.append((answer.type, answer)),
            lambda fraction, message: self.progress.append((fraction, message)),
        )


class Panel:
    """Stand-in for the panel: uses a WorkerProcess and runs Qt's event loop."""

    def __init__(self, fake, worker):
        self.fake = fake
        self.worker = worker

    def begin(self, request):
        outcome = Outcome()
        self.worker.send(request, *outcome.callbacks)
        return outcome

    def wait_for(self, condition):
        # PyTorch loads slowly on a busy computer.
        self.fake.wait_for(condition, seconds=120)

    def wait_for_progress(self, outcome, message):
        self.wait_for(lambda: any(said.startswith(message) for _, said in outcome.progress) or outcome.ends)
        assert not outcome.ends, outcome.ends

    def wait_for_end(self, outcome):
        """The final callback of a run: its kind and its argument."""
        self.wait_for(lambda: outcome.ends)
        self.fake.process_events(0.05)
        (end,) = outcome.ends
        return end

    def cancel(self, outcome):
        """Cancel; return how the run ended and after how many seconds."""
        started = time.monotonic()
        self.worker.cancel("1")
        self.wait_for(lambda: outcome.ends)
        seconds = time.monotonic() - started
        return self.wait_for_end(outcome)[0], seconds


@pytest.fixture
def panel_for(fake_slicer):
    from DCASegmentationLib.worker_client import WorkerProcess

    workers = []

    def make(library_folder=MODULE_FOLDER, python=sys.executable, **others):
        workers.append(WorkerProcess(python, library_folder, **others))
        return Panel(fake_slicer, workers[-1])

    yield make
    for worker in workers:
        worker.stop()


@pytest.fixture
def panel(panel_for):
    """A panel with the real worker."""
    return panel_for()


@pytest.fixture
def panel_with(panel_for, tmp_path_factory):
    """A panel with a process instead of the worker that runs ``code`` after its hello."""

    def make(code, hello='{"type": "hello", "version": 1, "pid": %d, "library": "0"}', **others):
        package = tmp_path_factory.mktemp("library") / "dcaseg"
        package.mkdir()
        (package / "__init__.py").touch()
        start = f"import json, os, subprocess, sys, time\nos.setsid()\nprint({hello!r} % os.getpid(), flush=True)\n"
        (package / "worker.py").write_text(start + code, encoding="utf-8")
        return panel_for(package.parent, **others)

    return make


def request_into(folder):
    return Segment("1", "ct.nrrd", str(folder / "result"))


def test_runs_follow_each_other_in_one_warm_process(panel, request_for, tmp_path, caplog):
    outcome = panel.begin(request_for())
    assert panel.worker.isRunning
    with pytest.raises(RuntimeError):
        panel.begin(request_for())
    kind, done = panel.wait_for_end(outcome)
    assert (kind, done.folder) == ("done", str(tmp_path / "result"))
    assert not panel.worker.isRunning
    assert outcome.progress[-1] == (1.0, "Finished")

    pid = panel.worker.pid
    kind, done = panel.wait_for_end(panel.begin(request_for("2", out=str(tmp_path / "größer 2"))))
    assert (kind, done.folder) == ("done", str(tmp_path / "größer 2"))
    assert panel.worker.pid == pid
    assert done.seconds["load network"] < 0.05
    lines = [record.getMessage() for record in caplog.records if record.name == "DCASegmentation.worker"]
    assert lines.count("Loading the model random-weights.") == 1
    assert panel.worker.lastLogLines == lines

    kind, failure = panel.wait_for_end(panel.begin(request_for("3", ct="nowhere.nrrd", out=str(tmp_path / "3"))))
    assert (kind, failure.problem) == ("error", "There is no file nowhere.nrrd.")
    panel.worker.stop()
    assert is_gone(pid, seconds=1)


def test_a_cancelled_run_ends_within_a_second(panel, request_for, tmp_path):
    outcome = panel.begin(request_for(options=MANY_WINDOWS))
    panel.wait_for_progress(outcome, "Segmenting window 2 ")
    pid = panel.worker.pid
    end, seconds = panel.cancel(outcome)
    assert end == "cancelled"
    assert seconds < 1
    assert is_gone(pid, seconds=0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_run_cancelled_before_the_worker_is_ready_ends_within_a_second(panel, request_for, tmp_path):
    outcome = panel.begin(request_for())
    panel.wait_for(lambda: panel.worker.pid is not None)
    pid = panel.worker.pid
    end, seconds = panel.cancel(outcome)
    assert (end, outcome.progress) == ("cancelled", [])
    assert seconds < 1
    assert is_gone(pid, seconds=0.05)


def test_a_killed_worker_is_reported_and_the_next_run_works(panel, request_for, tmp_path):
    outcome = panel.begin(request_for(options=MANY_WINDOWS))
    panel.wait_for_progress(outcome, "Segmenting window 2 ")
    assert list(tmp_path.glob(".result.partial-*"))
    os.kill(panel.worker.pid, signal.SIGKILL)
    kind, failure = panel.wait_for_end(outcome)
    assert (kind, failure.problem) == ("error", "The segmentation process was killed by the system or another program.")
    assert "memory" in failure.remedy
    assert "Loading the model random-weights." in failure.details
    assert list(tmp_path.iterdir()) == []
    assert panel.wait_for_end(panel.begin(request_for()))[0] == "done"


# A worker that accepts a request, starts a child, writes a file and an event, and then no longer responds.
DEAF = """
child = subprocess.Popen(["sleep", "60"])
request = json.loads(sys.stdin.readline())
folder, name = os.path.split(request["out"])
os.mkdir(os.path.join(folder, f".{name}.partial-MACHINE-{os.getpid()}-1-0badcafe"))
print(json.dumps({"type": "progress", "id": "1", "fraction": 0, "message": str(child.pid)}), flush=True)
time.sleep(60)
""".replace("MACHINE", temp_paths._get_machine_id())


def test_an_unresponsive_worker_is_killed_with_its_children(panel_with, tmp_path):
    panel = panel_with(DEAF)
    outcome = panel.begin(request_into(tmp_path))
    panel.wait_for_progress(outcome, "")
    pid, child = panel.worker.pid, int(outcome.progress[0][1])
    end, seconds = panel.cancel(outcome)
    assert end == "cancelled"
    assert seconds < 1
    assert is_gone(pid, seconds=0.05) and is_gone(child, seconds=0.05)
    assert list(tmp_path.iterdir()) == []


def test_stop_ends_worker_and_run_without_callbacks(panel_with, tmp_path):
    panel = panel_with(DEAF)
    outcome = panel.begin(request_into(tmp_path))
    panel.wait_for_progress(outcome, "")
    pid, child = panel.worker.pid, int(outcome.progress[0][1])
    panel.worker.stop()
    assert is_gone(pid, seconds=0.05) and is_gone(child, seconds=0.05)
    assert list(tmp_path.iterdir()) == []
    panel.fake.process_events(0.1)
    assert outcome.ends == []
    assert not panel.worker.isRunning


def test_cancelling_twice_or_without_a_run_is_harmless(panel_with, tmp_path):
    panel = panel_with(DEAF)
    panel.worker.cancel("1")
    outcome = panel.begin(request_into(tmp_path))
    panel.wait_for_progress(outcome, "")
    panel.worker.cancel("1")
    assert panel.cancel(outcome)[0] == "cancelled"
    panel.worker.cancel("1")


def test_results_that_cross_the_cancel_are_removed(panel_with, tmp_path):
    panel = panel_with(
        'request = json.loads(sys.stdin.readline())\n'
        'print(json.dumps({"type": "progress", "id": "1", "fraction": 1, "message": "Finished"}), flush=True)\n'
        'assert json.loads(sys.stdin.readline())["type"] == "cancel"\n'
        'os.mkdir(request["out"])\n'
        'json.dump({"process": os.getpid()}, open(os.path.join(request["out"], "request.json"), "w"))\n'
        'done = {"type": "done", "id": "1", "folder": request["out"], "device": "CPU", "seconds": {}}\n'
        'print(json.dumps(done), flush=True)\n'
        'sys.stdin.readline()\n'
    )  # fmt: skip
    outcome = panel.begin(request_into(tmp_path))
    panel.wait_for_progress(outcome, "Finished")
    assert panel.cancel(outcome)[0] == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_created_meanwhile_by_another_program_stays(panel_with, tmp_path):
    panel = panel_with(DEAF)
    outcome = panel.begin(request_into(tmp_path))
    panel.wait_for_progress(outcome, "")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "request.json").write_text('{"process": 1}')
    assert panel.cancel(outcome)[0] == "cancelled"
    assert [path.name for path in tmp_path.rglob("*")] == ["result", "request.json"]


def test_a_folder_that_existed_before_is_never_removed(panel_with, tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "thesis.txt").write_text("mine", encoding="utf-8")
    panel = panel_with("sys.stdin.readline(); sys.exit(3)")
    assert panel.wait_for_end(panel.begin(request_into(tmp_path)))[0] == "error"
    assert (tmp_path / "result" / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_lines_may_arrive_in_pieces(panel_with, tmp_path):
    panel = panel_with(
        'sys.stdin.readline()\n'
        'text = json.dumps({"type": "error", "id": "1", "problem": "größer", "remedy": ""}, ensure_ascii=False)\n'
        'for byte in (text + "\\n").encode():\n'
        '    os.write(1, bytes([byte])); time.sleep(0.001)\n'
        'time.sleep(60)\n'
    )  # fmt: skip
    kind, failure = panel.wait_for_end(panel.begin(request_into(tmp_path)))
    assert (kind, failure.problem) == ("error", "größer")


@pytest.mark.parametrize(
    ("code", "problem", "details"),
    [
        ("print('Downloading 10%', flush=True); time.sleep(60)", "an invalid answer", "Downloading 10%"),
        ("print('[]', flush=True); time.sleep(60)", "an invalid answer", "not a JSON object"),
        ("sys.exit('no such thing')", "ended without an answer (exit code 1)", "no such thing"),
        ("sys.stderr.write('last words'); sys.exit(0)", "ended without an answer (exit code 0)", "last words"),
        ("os.abort()", "crashed (code 6)", ""),
    ],
)
def test_a_failing_worker_is_an_error_with_its_last_output_and_another_is_started(
    panel_with, tmp_path, code, problem, details
):
    panel = panel_with(code)
    for _ in range(2):
        kind, failure = panel.wait_for_end(panel.begin(request_into(tmp_path)))
        assert kind == "error" and problem in failure.problem
        assert failure.remedy and details in failure.details


def test_a_worker_of_another_version_is_refused(panel_with, tmp_path):
    panel = panel_with("time.sleep(60)", hello='{"type": "hello", "version": 2, "pid": %d, "library": "9.9"}')
    kind, failure = panel.wait_for_end(panel.begin(request_into(tmp_path)))
    assert kind == "error" and "version 2" in failure.problem
    assert "Restart Slicer" in failure.remedy


def test_a_missing_python_is_reported(panel_for, tmp_path):
    panel = panel_for(python=str(tmp_path / "no-python"))
    kind, failure = panel.wait_for_end(panel.begin(request_into(tmp_path)))
    assert kind == "error" and failure.problem == f"{tmp_path / 'no-python'} could not be started."


def test_a_missing_library_is_reported(panel_for, tmp_path):
    (tmp_path / "empty" / "dcaseg").mkdir(parents=True)
    (tmp_path / "empty" / "dcaseg" / "__init__.py").touch()
    panel = panel_for(tmp_path / "empty")
    kind, failure = panel.wait_for_end(panel.begin(request_into(tmp_path)))
    assert kind == "error" and "No module named dcaseg.worker" in failure.details


def test_starting_and_cancelling_never_block_the_caller(panel_with, tmp_path):
    panel = panel_with(DEAF)
    started = time.monotonic()
    outcome = panel.begin(request_into(tmp_path))
    asked = time.monotonic() - started
    panel.wait_for_progress(outcome, "")
    started = time.monotonic()
    panel.worker.cancel("1")
    assert max(asked, time.monotonic() - started) < 0.3
    assert panel.wait_for_end(outcome)[0] == "cancelled"


# A worker that answers a request with its process ID.
ANSWERS = """
request = json.loads(sys.stdin.readline())
print(json.dumps({"type": "case_added", "id": request["id"], "name": str(os.getpid()), "cases": 1}), flush=True)
assert json.loads(sys.stdin.readline())["type"] == "quit"
"""


@pytest.mark.parametrize("quits", [True, False])
def test_a_worker_that_is_not_kept_warm_is_gone_with_its_answer(panel_with, quits):
    from DCASegmentationLib.worker_client import Purpose

    panel = panel_with(ANSWERS + ("" if quits else "time.sleep(60)"), purpose=Purpose("The process", "Try again."))
    pids = []
    for _ in range(2):
        kind, answer = panel.wait_for_end(panel.begin(AddUnlabeledCT("1", "training", "ct.nrrd")))
        pids.append(int(answer.name))
        assert kind == "case_added" and is_gone(pids[-1], seconds=0.05) and not panel.worker.isRunning
    assert pids[0] != pids[1]


def test_a_request_to_a_worker_that_has_just_ended_does_not_lose_the_ones_before(panel_with, tmp_path):
    panel = panel_with("sys.stdin.readline(); sys.exit(3)")
    first = panel.begin(request_into(tmp_path))
    # The process has ended, but the event loop has not reported it yet.
    panel.worker._connection._process.waitForFinished(60_000)
    second = panel.begin(AddUnlabeledCT("2", "training", "ct.nrrd"))
    for outcome in (first, second):
        kind, failure = panel.wait_for_end(outcome)
        assert kind == "error" and "exit code 3" in failure.problem


def test_a_case_that_was_added_before_the_cancel_arrived_is_reported_as_added(panel_with, tmp_path):
    panel = panel_with(
        'request = json.loads(sys.stdin.readline())\n'
        'print(json.dumps({"type": "progress", "id": "1", "fraction": 1, "message": "Finished"}), flush=True)\n'
        'assert json.loads(sys.stdin.readline())["type"] == "cancel"\n'
        'print(json.dumps({"type": "case_added", "id": "1", "name": "ct-1", "cases": 3}), flush=True)\n'
        'sys.stdin.readline()\n'
    )  # fmt: skip
    outcome = panel.begin(AddUnlabeledCT("1", str(tmp_path), "ct.nrrd"))
    panel.wait_for_progress(outcome, "Finished")
    assert panel.cancel(outcome)[0] == "case_added"


def test_the_log_of_the_worker_reaches_slicers_log_with_its_levels(panel_with, tmp_path, caplog):
    panel = panel_with(
        'for level in ("info", "warning", "critical", "unheard-of"):\n'
        '    print(json.dumps({"type": "log", "message": "A 100 % " + level, "level": level}), flush=True)\n'
        'print(json.dumps({"type": "log", "message": "from a worker of before"}), flush=True)\n'
        'sys.stderr.write("printed\\n"); sys.stderr.flush(); sys.stdin.readline(); sys.exit(0)\n'
    )  # fmt: skip
    panel.wait_for_end(panel.begin(request_into(tmp_path)))
    logged = {record.getMessage(): record.levelname for record in caplog.records}
    assert logged == {
        "A 100 % info": "INFO", "A 100 % warning": "WARNING", "A 100 % critical": "ERROR",
        "A 100 % unheard-of": "ERROR", "from a worker of before": "INFO", "printed": "INFO",
    }  # fmt: skip
    panel.fake.log.clear()


@pytest.mark.slow
def test_the_next_run_can_be_started_when_the_last_one_ends(panel, request_for, tmp_path):
    first, second = Outcome(), Outcome()
    next_request = request_for("2", out=str(tmp_path / "second"))

    def ask_again(answer):
        first.ends.append((answer.type, answer))
        panel.worker.send(next_request, *second.callbacks)

    panel.worker.send(request_for(), ask_again)
    assert panel.wait_for_end(second)[0] == "done"
    assert [Path(end.folder).name for _, end in first.ends + second.ends] == ["result", "second"]
