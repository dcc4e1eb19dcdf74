"""Requests of the worker besides a segmentation: download a model, and add a case to a training set."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.temp_paths import make_partial_path
from dcaseg.training.corrections import read_dataset
from dcaseg.worker.protocol import (
    AddCorrectedCase,
    AddUnlabeledCT,
    CaseAdded,
    Download,
    Downloaded,
    Failure,
    Log,
    Progress,
    WasCancelled,
    encode,
    remove_traces,
)
from model_server import serving
from worker_client import Worker, worker_environment

pytest_plugins = ("worker_cases",)


@pytest.fixture(scope="module")
def archive(small_bundle) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for path in small_bundle.rglob("*"):
            target.write(path, path.relative_to(small_bundle))
    return content.getvalue()


@pytest.fixture
def worker():
    worker = Worker()
    worker.next_event()
    yield worker
    worker.close()


def has_loaded_torch(worker: Worker) -> bool:
    """Whether the process has loaded PyTorch's libraries (Linux only; False elsewhere)."""
    maps = Path(f"/proc/{worker.process.pid}/maps")
    return sys.platform.startswith("linux") and "/torch/" in maps.read_text(encoding="utf-8")


def answer_to(worker: Worker, request):
    worker.write(encode(request))
    return worker.answer()


def test_a_model_is_downloaded_without_loading_torch(worker, archive, tmp_path):
    with serving(archive) as server:
        worker.write(encode(Download("1", server.address, str(tmp_path))))
        events = [worker.next_event()]
        while isinstance(events[-1], Progress | Log):
            events.append(worker.next_event())
    assert events[-1] == Downloaded("1", str(tmp_path / "random-weights"))
    fractions = [event.fraction for event in events[:-1]]
    assert fractions == sorted(fractions) and events[0].message.startswith("Downloading")
    assert (tmp_path / "random-weights" / "models" / "model.safetensors").is_file()
    assert not has_loaded_torch(worker)


def test_a_cancelled_download_ends_the_worker_at_once_and_the_next_one_resumes(worker, archive, tmp_path):
    with serving(archive) as server:
        server.waits_after = len(archive) // 2
        worker.write(encode(Download("1", server.address, str(tmp_path))))
        worker.wait_for_progress("Downloading")
        started = time.monotonic()
        worker.cancel()
        assert worker.wait() == 0
        assert time.monotonic() - started < 1
        assert worker.rest()[-1] == WasCancelled("1")
        assert [path.name for path in tmp_path.iterdir()] == [".downloads"]
        server.waits_after = None
        again = Worker()
        try:
            again.next_event()
            assert isinstance(answer_to(again, Download("2", server.address, str(tmp_path))), Downloaded)
        finally:
            again.close()
        assert server.ranges[0] is None and server.ranges[1].startswith("bytes=")


def test_a_download_that_fails_is_reported_and_the_worker_goes_on(worker, archive, tmp_path):
    with serving(archive) as server:
        wrong = server.address.replace("model.zip", "no.zip")
        answer = answer_to(worker, Download("1", wrong, str(tmp_path)))
        assert isinstance(answer, Failure) and "404" in answer.problem and answer.details == ""
        answer = answer_to(worker, Download("2", "ftp://nowhere", str(tmp_path)))
        assert isinstance(answer, Failure) and "https" in answer.problem
        assert isinstance(answer_to(worker, Download("3", server.address, str(tmp_path))), Downloaded)


@pytest.fixture
def case(coarse_phantom, tmp_path) -> AddCorrectedCase:
    paths = [str(coarse_phantom / name) for name in ("ct.nii.gz", "labels.nii.gz")]
    return AddCorrectedCase(
        "1", str(tmp_path / "training"), "ct-1", *paths, "AMOS", ("liver", "spleen"), "first", "ab" * 32,
        ({"rank": 2, "organ": "liver", "status": "corrected"},),
    )  # fmt: skip


def test_cases_are_added_to_a_training_set_without_loading_torch(worker, case, tmp_path):
    assert answer_to(worker, case) == CaseAdded("1", "ct-1", 1)
    (added,) = read_dataset(tmp_path / "training")
    assert (added.reviewed, added.model, added.places[0].rank) == (("spleen", "liver"), "first", 2)
    other = tmp_path / "other.nrrd"
    ct = sitk.ReadImage(case.ct)
    sitk.WriteImage(ct + 1, str(other))
    answer = answer_to(worker, AddUnlabeledCT("2", case.folder, str(other)))
    assert isinstance(answer, CaseAdded) and answer.cases == 1 and answer.name.startswith("ct-")
    again = answer_to(worker, AddUnlabeledCT("3", case.folder, str(other)))
    assert isinstance(again, Failure) and "is already in" in again.problem
    assert not has_loaded_torch(worker)


def test_a_case_that_cannot_be_written_is_reported(worker, case, tmp_path):
    (tmp_path / "training").write_text("precious")
    answer = answer_to(worker, case)
    assert isinstance(answer, Failure) and answer.remedy
    assert (tmp_path / "training").read_text() == "precious"


@pytest.mark.skipif(os.name != "posix", reason="ends the process by a signal")
@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_stopped_worker_leaves_no_part_of_a_case(worker, case, large_ct, tmp_path, how):
    request = AddUnlabeledCT("1", case.folder, str(large_ct))
    worker.write(encode(request))
    folder = tmp_path / "training" / "unlabelled"
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    if how == "cancelled":
        worker.cancel()
        assert worker.wait() == 0
        assert worker.rest()[-1] == WasCancelled("1")
    else:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        remove_traces(request, worker.process.pid)
    assert list(folder.iterdir()) == []


def test_only_what_the_process_wrote_is_removed(tmp_path):
    own, finished = make_partial_path(tmp_path / "adding"), tmp_path / "first"
    own.mkdir()
    finished.mkdir()
    other = own.with_name(own.name.replace(f"-{os.getpid()}-", "-1-"))
    other.mkdir()
    request = Download("1", "https://example.org", str(tmp_path))
    remove_traces(request, None)
    assert own.is_dir()
    remove_traces(request, os.getpid())
    assert sorted(tmp_path.iterdir()) == sorted([other, finished])


def test_a_second_request_is_refused_and_the_first_continues(worker, archive, case, tmp_path):
    with serving(archive) as server:
        server.waits_after = len(archive) // 2
        worker.write(encode(Download("1", server.address, str(tmp_path / "models"))))
        worker.wait_for_progress("Downloading")
        answer = answer_to(worker, replace(case, id="2"))
        assert isinstance(answer, Failure) and answer.id == "2" and "Another request" in answer.problem
        server.closing.set()
        answer = worker.answer()
        assert isinstance(answer, Downloaded) and answer.id == "1"
    assert not (tmp_path / "training").exists()


# A library that logs when it is imported, in the words of Python's logging.
LOGS = """
import logging
logging.getLogger("library").info("not shown")
logging.getLogger("library").warning("Careful: %s", "hot")
logging.getLogger("dcaseg.test").info("a step")
raise ImportError("no further")
"""


def test_what_libraries_log_arrives_with_its_level(tmp_path, coarse_phantom, request_for):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text(LOGS, encoding="utf-8")
    worker = Worker(worker_environment(tmp_path / "path"))
    try:
        worker.next_event()
        worker.write(encode(request_for()))
        assert worker.next_event() == Log("Careful: hot", "warning")
        assert worker.next_event() == Log("a step", "info")
        assert isinstance(worker.next_event(), Failure)
    finally:
        worker.close()


def test_arrays_are_written_as_given(case, worker, tmp_path):
    """The labels of organs that were not reviewed are background in the case."""
    assert isinstance(answer_to(worker, case), CaseAdded)
    (added,) = read_dataset(tmp_path / "training")
    given = sitk.GetArrayFromImage(sitk.ReadImage(case.labels))
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(added.label)))
    assert set(np.unique(written)) == {0, 1, 6} and (written[written > 0] == given[written > 0]).all()
