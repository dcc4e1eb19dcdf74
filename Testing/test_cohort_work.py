"""One case in a worker: complete results or none, and always an outcome."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from dcaseg.cohort import case_worker as work
from dcaseg.cohort.case import CASES, Case, Settings
from dcaseg.cohort.case_worker import MODEL_CACHE
from dcaseg.cohort.discovery import find
from dcaseg.dicom.archive import Rules
from dcaseg.dicom.segmentation import require_same_voxels
from dcaseg.inference import pipeline as job
from dcaseg.inference.device import Device
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.segmenter import Segmenter
from dcaseg.models.bundle import Bundle
from dcaseg.organs import AMOS
from dicom_archive import claim_unknown_compression, write_ct_series
from small_model import save_small_bundle, vivid_network


@pytest.fixture
def settings(small_bundle, tmp_path) -> Settings:
    (tmp_path / "out" / CASES).mkdir(parents=True)
    weights = Bundle.load(small_bundle).weights.sha256
    return Settings(str(tmp_path / "out"), str(small_bundle), weights, SegmentOptions(overlap=0.0), "cpu")


@pytest.fixture
def ct(coarse_phantom) -> sitk.Image:
    return sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))


@pytest.fixture
def case_in(tmp_path):
    def first(folder: Path) -> Case:
        return find(folder, tmp_path / "out", Rules()).cases[0]

    return first


@pytest.fixture
def dicom_case(ct, tmp_path, case_in) -> Case:
    write_ct_series(tmp_path / "in", ct)
    return case_in(tmp_path / "in")


def left_in(settings: Settings) -> list[str]:
    return [entry.name for entry in (Path(settings.out) / CASES).iterdir()]


def test_a_dicom_series_becomes_a_complete_result_folder_and_is_not_segmented_again(dicom_case, settings, monkeypatch):
    outcome = work.process(dicom_case, settings)
    assert (outcome.status, outcome.reason) == ("ok", "")
    folder = settings.get_case_folder(dicom_case.name)
    assert {file.name for file in folder.iterdir()} >= {
        "case.json", "labels.nrrd", "log.txt", "request.json", "segmentation.dcm", "thumbnail.jpg", "volumes.csv",
    }  # fmt: skip
    require_same_voxels(folder / "segmentation.dcm", sitk.ReadImage(str(folder / "labels.nrrd")), AMOS)
    request = json.loads((folder / "request.json").read_text())
    assert request["ct"] == list(dicom_case.files)
    assert left_in(settings) == [dicom_case.name]
    assert outcome.seconds["total"] > outcome.seconds["network"] > 0
    monkeypatch.setattr(work, "_segment_case", lambda *_: pytest.fail("it was segmented again"))
    assert replace(work.process(dicom_case, settings), peak_mb=0.0) == replace(outcome, peak_mb=0.0)


@pytest.mark.slow
def test_a_review_gives_the_case_its_concern(dicom_case, settings):
    reviewed = replace(settings, options=SegmentOptions(overlap=0.0, review=True))
    outcome = work.process(dicom_case, reviewed)
    review = json.loads((settings.get_case_folder(dicom_case.name) / "review.json").read_text())
    assert outcome.concern == pytest.approx(sum(place["expected_wrong_ml"] for place in review["places"]))
    assert len(outcome.concerns) == min(len(review["places"]), 3) > 0
    assert outcome.concerns[0].startswith(review["places"][0]["name"])


def test_an_image_file_gets_labels_but_no_dicom_seg(coarse_phantom, settings, case_in):
    case = case_in(coarse_phantom)
    assert work.process(case, settings).status == "ok"
    assert not (settings.get_case_folder(case.name) / "segmentation.dcm").exists()


@pytest.mark.slow
def test_a_series_and_a_file_get_the_same_labels_from_a_model_that_is_loaded_once(
    dicom_case, coarse_phantom, settings, case_in
):
    labels, loads = [], []
    for case in (dicom_case, case_in(coarse_phantom)):
        loads.append(work.process(case, settings).loads)
        labels.append(sitk.GetArrayFromImage(sitk.ReadImage(str(settings.get_case_folder(case.name) / "labels.nrrd"))))
    np.testing.assert_array_equal(*labels)
    assert loads[0] == loads[1]
    assert MODEL_CACHE.get_segmenter(settings) is MODEL_CACHE.get_segmenter(settings)


@pytest.mark.slow
def test_a_case_is_read_while_another_is_in_the_network_and_a_third_waits(
    coarse_phantom, settings, case_in, tmp_path, monkeypatch
):
    for number in range(3):
        shutil.copytree(coarse_phantom, tmp_path / f"in/{number}")
    cases = find(tmp_path / "in", tmp_path / "out", Rules()).cases
    MODEL_CACHE.get_segmenter(settings)
    read: list[Path] = []
    two_are_read = threading.Event()
    in_network: list[int] = []
    n_in_network: list[int] = []
    read_when_first_left: list[int] = []

    def read_ct(path, *arguments):
        read.append(path)
        if len(read) == 2:
            two_are_read.set()
        return real_read(path, *arguments)

    def segment(self, *arguments):
        in_network.append(1)
        n_in_network.append(len(in_network))
        # The second case can only be read now if reading continues while the network runs.
        assert two_are_read.wait(60)
        if not read_when_first_left:
            time.sleep(0.3)
            read_when_first_left.append(len(read))
        result = real_segment(self, *arguments)
        in_network.pop()
        return result

    real_read, real_segment = job.read_ct, Segmenter.segment
    monkeypatch.setattr(job, "read_ct", read_ct)
    monkeypatch.setattr(Segmenter, "segment", segment)
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(lambda case: work.process(case, settings), cases))
    assert [(outcome.status, outcome.reason) for outcome in outcomes] == [("ok", "")] * 3
    assert max(n_in_network) == 1
    # Two in memory, never three, for any number of threads.
    assert read_when_first_left == [2]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_a_file_with_an_undecodable_name_does_not_stop_the_worker(coarse_phantom, settings, tmp_path, case_in):
    (tmp_path / "in").mkdir()
    target = Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff\xfe.nii.gz"))
    shutil.copy(coarse_phantom / "ct.nii.gz", target)
    outcome = work.process(case_in(tmp_path / "in"), settings)
    assert (outcome.status, outcome.again) == ("failed", False)
    assert "\ufffd\ufffd.nii.gz cannot be opened: its name or path is not valid UTF-8." in outcome.reason
    json.dumps(outcome.reason).encode()


def test_a_case_is_segmented_again_when_it_or_the_options_have_changed(dicom_case, settings):
    work.process(dicom_case, settings)
    record = settings.get_case_folder(dicom_case.name) / "case.json"
    other_case = replace(dicom_case, fingerprint="other")
    for case, changed in (
        (other_case, settings),
        (other_case, replace(settings, options=SegmentOptions(overlap=0.1))),
    ):
        before = record.stat().st_ino
        assert work.process(case, changed).status == "ok"
        assert record.stat().st_ino != before
        assert left_in(settings) == [dicom_case.name]


def test_a_model_that_was_replaced_between_two_cohorts_is_loaded_again(settings, small_bundle, tmp_path):
    """A Dask worker may outlive a cohort, and ``dca bundle export --replace`` puts another model into its folder."""
    folder = save_small_bundle(tmp_path / "model", vivid_network(len(AMOS)))
    first = replace(settings, bundle=str(folder), weights=Bundle.load(folder).weights.sha256)
    old = MODEL_CACHE.get_segmenter(first)
    shutil.rmtree(folder)
    network = vivid_network(len(AMOS))
    torch.nn.init.zeros_(network.experts[0].head.bias)
    second = replace(first, weights=Bundle.load(save_small_bundle(folder, network)).weights.sha256)
    assert second.weights != first.weights
    assert MODEL_CACHE.get_segmenter(second).model.weights.sha256 == second.weights
    assert not any(each is old for each in MODEL_CACHE._segmenters.values()), "it would only fill the memory"


@pytest.mark.parametrize(
    "change",
    ["labels.nrrd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("segmentation.seg.nrrd", "nothing"))],
)
def test_corrections_in_a_case_folder_are_kept_when_the_case_is_segmented_again(dicom_case, settings, change):
    work.process(dicom_case, settings)
    folder = settings.get_case_folder(dicom_case.name)
    before = (folder / "labels.nrrd").read_bytes()
    if change != "nothing":
        (folder / change).write_bytes(before + b"corrected by hand")
    outcome = work.process(replace(dicom_case, fingerprint="other"), settings)
    assert outcome.status == "ok" and (folder / "labels.nrrd").read_bytes() == before
    kept = [name for name in left_in(settings) if name != dicom_case.name]
    if change == "nothing":
        assert kept == []
        return
    assert len(kept) == 1 and kept[0].startswith(f"{dicom_case.name}-before-")
    assert (folder.parent / kept[0] / change).read_bytes() == before + b"corrected by hand"
    assert any(kept[0] in note for note in outcome.notes)
    assert any(kept[0] in note for note in json.loads((folder / "case.json").read_text())["outcome"]["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("corrected", [True, False])
def test_corrections_of_cases_of_earlier_versions_are_kept_too(dicom_case, settings, corrected):
    """Their records have no checksums, but are the last file that was written."""
    work.process(dicom_case, settings)
    folder = settings.get_case_folder(dicom_case.name)
    record = json.loads((folder / "case.json").read_text())
    del record["files"]
    (folder / "case.json").write_text(json.dumps(record))
    later = (folder / "case.json").stat().st_mtime + (60 if corrected else 0)
    os.utime(folder / "labels.nrrd", (later, later))
    work.process(replace(dicom_case, fingerprint="other"), settings)
    assert len(left_in(settings)) == 1 + corrected


@pytest.mark.slow
def test_files_of_the_user_in_a_case_folder_are_not_lost(dicom_case, settings):
    work.process(dicom_case, settings)
    folder = settings.get_case_folder(dicom_case.name)
    (folder / "notes.txt").write_text("mine")
    outcome = work.process(replace(dicom_case, fingerprint="other"), settings)
    assert (outcome.status, outcome.again) == ("failed", True)
    assert "not part of a result (notes.txt)" in outcome.reason
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert work.process(replace(dicom_case, fingerprint="other"), settings).status == "ok"


def test_a_truncated_slice_leaves_a_reason_and_no_files(dicom_case, settings):
    file = Path(dicom_case.files[11])
    file.write_bytes(file.read_bytes()[:-100])
    outcome = work.process(dicom_case, settings)
    assert (outcome.status, outcome.again) == ("failed", False)
    assert "incomplete or damaged" in outcome.reason
    assert left_in(settings) == []


def test_a_missing_slice_is_named(dicom_case, settings):
    file = Path(dicom_case.files[3])
    file.unlink()
    assert f"{file.name} cannot be read" in work.process(dicom_case, settings).reason


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_a_missing_slice_with_an_undecodable_name_is_named(dicom_case, settings):
    gone = f"{Path(dicom_case.files[3]).parent}/\udcff"
    case = replace(dicom_case, files=(*dicom_case.files[:3], gone, *dicom_case.files[4:]))
    assert "\ufffd cannot be read" in work.process(case, settings).reason


def test_an_unknown_compression_gives_a_reason(dicom_case, settings):
    for file in dicom_case.files:
        claim_unknown_compression(Path(file))
    outcome = work.process(dicom_case, settings)
    assert (outcome.status, outcome.again) == ("failed", False)
    assert "cannot be decoded (it is damaged or has an unsupported compression)" in outcome.reason
    assert left_in(settings) == []


def test_a_full_disk_leaves_no_files_and_makes_the_case_retryable(dicom_case, settings, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(work, "write_checked", full)
    outcome = work.process(dicom_case, settings)
    assert (outcome.status, outcome.again) == ("failed", True)
    assert "The disk is full" in outcome.reason
    assert left_in(settings) == []


def test_an_unexpected_error_gives_an_outcome_too(dicom_case, settings, monkeypatch):
    monkeypatch.setattr(Segmenter, "segment", lambda *_: 1 / 0)
    outcome = work.process(dicom_case, settings)
    assert outcome.status == "failed"
    assert "ZeroDivisionError: division by zero (test_cohort_work.py, line" in outcome.reason


def test_a_case_without_its_picture_is_complete_and_has_a_note(dicom_case, settings, monkeypatch):
    monkeypatch.setattr(work, "draw_pictures", lambda *_: 1 / 0)
    outcome = work.process(dicom_case, settings)
    assert outcome.status == "ok"
    assert any("was not written" in note and "division by zero" in note for note in outcome.notes)
    folder = settings.get_case_folder(dicom_case.name)
    assert (folder / "labels.nrrd").is_file() and not (folder / "thumbnail.jpg").exists()


def test_a_lack_of_memory_is_reported_and_retried(dicom_case, settings, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Segmenter, "segment", no_memory)
    outcome = work.process(dicom_case, settings)
    assert (outcome.again, outcome.reason) == (True, "The worker does not have enough memory for this CT.")


@pytest.mark.slow
def test_a_case_runs_on_the_cpu_if_the_model_does_not_fit_on_the_gpu(dicom_case, settings, monkeypatch):
    on_cpu = MODEL_CACHE.get_segmenter(settings)
    on_gpu = SimpleNamespace(device=Device(torch.device("cuda"), "a small GPU"))
    monkeypatch.setattr(MODEL_CACHE, "get_segmenter", lambda settings: on_cpu if settings.device == "cpu" else on_gpu)
    really = work._segment_and_write

    def full_gpu(case, settings, segmenter):
        if segmenter is on_gpu:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(case, settings, segmenter)

    monkeypatch.setattr(work, "_segment_and_write", full_gpu)
    outcome = work.process(dicom_case, replace(settings, device="auto"))
    assert outcome.status == "ok"
    assert "out of memory on a small GPU: ran on the CPU" in outcome.notes


def test_a_ct_without_uids_is_segmented_but_gets_no_dicom_seg(ct, tmp_path, settings, case_in):
    write_ct_series(tmp_path / "in", ct, SeriesInstanceUID="", StudyInstanceUID="", SOPInstanceUID="", PatientID="")
    case = case_in(tmp_path / "in")
    outcome = work.process(case, settings)
    assert outcome.status == "ok"
    assert any("DICOM SEG was not written" in note for note in outcome.notes)
    assert (settings.get_case_folder(case.name) / "labels.nrrd").is_file()


def test_a_different_model_on_a_worker_is_rejected(dicom_case, settings):
    other = replace(settings, weights="00" * 32, device="auto", bundle=f"{settings.bundle}/.")
    assert "has a different model" in work.process(dicom_case, other).reason


def test_a_case_that_never_ends_fails_with_a_line_and_its_process_ends(dicom_case, settings, monkeypatch):
    never, ended = threading.Event(), []
    monkeypatch.setattr(work, "read_json", lambda path: never.wait())
    monkeypatch.setattr(work, "_SECONDS_TO_SEND", 0.05)
    monkeypatch.setattr(work.os, "_exit", ended.append)
    limited = replace(settings, case_minutes=0.005, max_parallel=7)
    outcome = work.process(dicom_case, limited)
    try:
        assert (outcome.status, outcome.again) == ("failed", False)
        assert outcome.reason.startswith("It was stopped after 0.005 minutes.")
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ended == [1]
    finally:
        never.set()


@pytest.mark.slow
def test_a_library_that_holds_pythons_lock_forever_ends_the_process():
    """A regular expression that backtracks without end never lets another thread run."""
    program = """
        import re
        from dcaseg.cohort import case_worker as work
        work._GRACE_SECONDS = 0.5
        work._WATCH.run_with_timeout(0.2, lambda: re.match("(a+)+$", "a" * 60 + "b"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
