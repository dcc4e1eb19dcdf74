"""The real worker as a process: it stays warm between runs and gives exactly one answer to each request."""

from __future__ import annotations

import csv
import importlib
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg import __version__
from dcaseg.worker.protocol import VERSION, Devices, Done, Failure, FoundDevices, Hello, Log, Progress, encode
from worker_client import EVERYTHING, MANY_WINDOWS, Worker, worker_environment

pytest_plugins = ("worker_cases",)

# Python loads sitecustomize.py at startup. This one makes the import of SimpleITK print, from Python, C and a child.
CHATTER = """
import importlib.abc, os, subprocess, sys

class Chatter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "SimpleITK":
            print("from Python")
            os.write(1, b"from C\\n")
            subprocess.run(["echo", "from a child"])
            print("read:", repr(sys.stdin.read()))

sys.meta_path.insert(0, Chatter())
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A worker shared by all tests in this file: it must survive all of them, and its libraries print."""
    path = tmp_path_factory.mktemp("path")
    (path / "sitecustomize.py").write_text(CHATTER, encoding="utf-8")
    worker = Worker(worker_environment(path))
    worker.next_event()
    yield worker
    worker.close()


@pytest.fixture
def new_worker():
    workers = []

    def start(environment=None):
        workers.append(Worker(environment))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def files_of(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_first_line_is_hello(new_worker):
    worker = new_worker()
    assert worker.next_event() == Hello(VERSION, worker.process.pid, __version__)


def test_devices_are_reported_and_can_be_selected(warm, request_for):
    warm.write(encode(Devices("7")))
    answer = warm.next_event()
    assert isinstance(answer, FoundDevices) and answer.id == "7"
    assert "cpu" in answer.found and not set(answer.found) & set(answer.missing)


def test_a_run_writes_the_requested_folder(warm, request_for):
    answer = warm.segment(request_for(options=EVERYTHING))
    assert isinstance(answer, Done)
    assert (answer.id, answer.folder) == ("1", request_for().out)
    assert answer.device.startswith("CPU")
    assert {"reading", "network", "writing"} <= set(answer.seconds)
    assert {"labels.nrrd", "entropy.nrrd", "attention_tail_level4.nrrd", "request.json"} <= set(files_of(answer.folder))
    with (Path(answer.folder) / "volumes.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 15


def test_maps_are_not_compressed_but_labels_are(warm, request_for):
    """The caller reads the maps at once; to compress them would take longer than to write everything else."""
    answer = warm.segment(request_for(options=EVERYTHING))
    for name, encoding in (("entropy", b"raw"), ("attention_tail_level4", b"raw"), ("labels", b"gzip")):
        header = (Path(answer.folder) / f"{name}.nrrd").read_bytes()[:2000]
        assert b"encoding: " + encoding + b"\n" in header, name


def test_a_copy_of_the_ct_is_added_on_request(warm, request_for, coarse_phantom):
    answer = warm.segment(request_for(ct_copy="ct.nrrd"))
    assert isinstance(answer, Done)
    copy, labels = (sitk.ReadImage(f"{answer.folder}/{name}.nrrd") for name in ("ct", "labels"))
    ct = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(copy), sitk.GetArrayFromImage(ct))
    assert (copy.GetSize(), copy.GetOrigin(), copy.GetDirection()) == (
        labels.GetSize(),
        labels.GetOrigin(),
        labels.GetDirection(),
    )


def test_the_second_run_finds_the_model_loaded(warm, request_for, small_bundle, tmp_path):
    shutil.copytree(small_bundle, tmp_path / "copy")
    warm.log.clear()
    first = warm.segment(request_for(bundle=str(tmp_path / "copy")))
    second = warm.segment(request_for("2", bundle=str(tmp_path / "copy"), out=str(tmp_path / "again")))
    assert isinstance(first, Done) and isinstance(second, Done)
    assert second.seconds["load network"] < first.seconds["load network"] / 5
    assert [line for line in warm.log if line.startswith("Loading")] == ["Loading the model random-weights."]


def test_another_or_a_changed_model_is_loaded_again(warm, request_for, small_bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small_bundle, copy)
    assert isinstance(warm.segment(request_for(bundle=str(copy))), Done)
    with (copy / "models" / "model.safetensors").open("ab") as file:
        file.write(b"more")
    answer = warm.segment(request_for("2", bundle=str(copy), out=str(tmp_path / "second")))
    assert isinstance(answer, Failure) and "incomplete" in answer.problem
    shutil.rmtree(copy)
    answer = warm.segment(request_for("3", bundle=str(copy), out=str(tmp_path / "third")))
    assert isinstance(answer, Failure) and "copy" in answer.problem
    assert not (tmp_path / "second").exists()


def test_a_model_deleted_during_a_run_does_not_disturb_it(warm, request_for, small_bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small_bundle, copy)
    warm.write(encode(request_for(bundle=str(copy), options=MANY_WINDOWS)))
    warm.wait_for_progress("Segmenting window 2 ")
    shutil.rmtree(copy)
    assert isinstance(warm.answer(), Done)


def test_progress_rises_from_the_check_of_the_model_to_the_end(warm, request_for):
    warm.write(encode(request_for()))
    steps = []
    while not isinstance(event := warm.next_event(), Done):
        if isinstance(event, Progress):
            steps.append((event.fraction, event.message))
    assert [fraction for fraction, _ in steps] == sorted(fraction for fraction, _ in steps)
    assert steps[0] == (0.0, "Checking the model")
    assert steps[-1] == (1.0, "Finished")
    assert any(message.startswith("Segmenting window 1 of") for _, message in steps)


def test_paths_need_not_be_ascii(warm, request_for, coarse_phantom, small_bundle, tmp_path):
    folder = tmp_path / "Jürgen Müller, 腹部 CT"
    folder.mkdir()
    shutil.copy(coarse_phantom / "ct.nii.gz", folder / "größe.nii.gz")
    shutil.copytree(small_bundle, folder / "modèle")
    changes = {"ct": str(folder / "größe.nii.gz"), "bundle": str(folder / "modèle"), "out": str(folder / "résultat")}
    answer = warm.segment(request_for(**changes))
    assert isinstance(answer, Done) and answer.folder == str(folder / "résultat")
    assert "labels.nrrd" in files_of(folder / "résultat")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"type": "segment", "id":\n', "not a line of JSON"),
        (b"\xff\x00\n", "not a line of JSON"),
        (b'{"type": "dance", "version": 1, "id": "7"}\n', "There is no 'dance'"),
        (b'{"type": "segment", "version": 1, "id": "7", "ct": "a"}\n', "out is missing"),
        (b'{"type": "segment", "version": 2, "id": "7", "ct": "a", "out": "b"}\n', "uses version 1"),
    ],
)
def test_an_invalid_line_is_answered_and_the_next_request_is_run(warm, request_for, line, problem):
    warm.write(line)
    answer = warm.answer()
    assert isinstance(answer, Failure) and problem in answer.problem
    assert answer.id == ("7" if b'"7"' in line else None)
    assert isinstance(warm.segment(request_for()), Done)


def test_a_request_may_arrive_in_pieces(warm, request_for):
    line = encode(request_for())
    for start in range(0, len(line), 40):
        warm.write(line[start : start + 40])
        time.sleep(0.002)
    assert isinstance(warm.answer(), Done)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ct": "nowhere.nrrd"}, "no file nowhere.nrrd"),
        ({"files": ("nowhere/1.dcm",)}, "1.dcm cannot be read"),
        ({"ct_copy": "../ct.nrrd"}, "The CT cannot be written as '../ct.nrrd'"),
        ({"out": "/proc/nowhere/result"}, "/proc/nowhere"),
        ({"bundle": "no-such-model"}, "no-such-model"),
        ({"device": "toaster"}, "toaster"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"options": {"overlap": 2}}, "The option overlap is 2, not a number from 0 to below 1"),
        ({"options": {"overlap": "much"}}, "The option overlap is 'much', not a number"),
        ({"options": {"batch": 0}}, "The option batch is 0, not a number of at least 1"),
        ({"options": {"batch": "two"}}, "The option batch is 'two', not a whole number"),
        ({"options": {"entropy": 1}}, "The option entropy is 1, not true or false"),
        ({"options": {"zoom": 2}}, "The option zoom is unknown"),
        ({"options": {"organs": ["appendix"]}}, "appendix"),
        ({"options": {"attention_levels": ["fine"]}}, "The option attention_levels[0] is 'fine', not a whole number"),
    ],
)
def test_a_request_that_fails_gives_a_remedy_and_leaves_no_files(warm, request_for, tmp_path, changes, problem):
    answer = warm.segment(request_for(**changes))
    assert isinstance(answer, Failure) and problem in answer.problem
    assert answer.remedy
    assert answer.details == ""
    assert files_of(tmp_path) == []


def test_a_folder_that_exists_is_never_touched(warm, request_for, tmp_path):
    (tmp_path / "result").mkdir()
    answer = warm.segment(request_for())
    assert isinstance(answer, Failure) and "already exists" in answer.problem
    assert files_of(tmp_path) == ["result"]


def test_a_second_run_at_the_same_time_is_refused_and_the_first_continues(warm, request_for, tmp_path):
    warm.write(encode(request_for("first", options=MANY_WINDOWS)))
    warm.wait_for_progress("Segmenting window 1 ")
    refusal = warm.segment(request_for("second", out=str(tmp_path / "second")))
    assert isinstance(refusal, Failure)
    assert (refusal.id, refusal.problem) == ("second", "A segmentation is already running.")
    answer = warm.answer()
    assert isinstance(answer, Done) and answer.id == "first"


def test_output_of_libraries_does_not_reach_the_events(warm, request_for):
    assert isinstance(warm.segment(request_for()), Done)
    for said in (b"from Python\n", b"from C\n", b"from a child\n", b"read: ''\n"):
        assert said in warm.errors
    assert all(line.startswith(b'{"type": ') for line in warm.lines)


def test_cancelling_an_unknown_run_changes_nothing(warm, request_for):
    warm.cancel("nothing")
    assert warm.next_event() == Log("There is no run 'nothing' to cancel.", "info")
    assert isinstance(warm.segment(request_for()), Done)
    warm.cancel("1")
    assert warm.next_event() == Log("There is no run '1' to cancel.")


def test_a_missing_library_is_named_and_a_new_worker_can_find_it(new_worker, request_for, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", encoding="utf-8"
    )
    worker = new_worker(worker_environment(tmp_path / "path"))
    worker.next_event()
    answer = worker.segment(request_for())
    assert isinstance(answer, Failure) and answer.problem == "The Python package 'torch' is missing."
    assert "Setup" in answer.remedy and "Traceback" in answer.details
    assert worker.wait() == 0


def test_an_incompatible_library_is_reported(new_worker, request_for, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise OSError('libc10.so: wrong ELF class')", encoding="utf-8")
    worker = new_worker(worker_environment(tmp_path / "path"))
    worker.next_event()
    answer = worker.segment(request_for())
    assert isinstance(answer, Failure) and "cannot be loaded (OSError: libc10.so" in answer.problem


def virtual_memory(pid):
    """The address space of the process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process that runs")
def test_too_little_memory_is_reported_and_the_worker_continues(warm, request_for, tmp_path):
    resource = importlib.import_module("resource")
    ct = str(tmp_path / "large.nrrd")
    sitk.WriteImage(sitk.Image(400, 400, 400, sitk.sitkInt16), ct, True)
    warm.segment(request_for("loads the model", out=str(tmp_path / "earlier")))
    pid = warm.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (virtual_memory(pid) + 20_000_000, before[1]))
    answer = warm.segment(request_for(ct=ct))
    resource.prlimit(pid, resource.RLIMIT_AS, before)
    assert isinstance(answer, Failure) and answer.problem == "There is not enough memory for this CT."
    assert files_of(tmp_path) == ["earlier", "large.nrrd"]
    assert isinstance(warm.segment(request_for("2")), Done)
