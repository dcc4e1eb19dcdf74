"""A whole cohort with real worker processes, from a mixed archive to the report, also when processes are killed."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest
import SimpleITK as sitk

pytest.importorskip("highdicom", reason="the extra cohort is not installed")
pytest.importorskip("distributed", reason="the extra cohort is not installed")

import psutil

from cohort_archive import EXPECTED, SUMMARY, count, write_archive
from dcaseg.cohort.case import LOCK
from dcaseg.dicom.segmentation import require_same_voxels
from dcaseg.file_lock import locked
from dcaseg.organs import AMOS
from kubernetes_manifest import SCHEDULER, command

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Fast; the labels of this bundle are random anyway.
OPTIONS = ("--overlap", "0", "--no-review")


class Cohort:
    """Runs ``dca cohort`` on the archive in separate processes."""

    def __init__(self, archive: Path, out: Path, bundle: Path) -> None:
        self.archive = archive
        self.out = out
        self.listening: set[str] = set()
        self._bundle = bundle

    def start(self, *more: str, max_file_bytes: int | None = None) -> subprocess.Popen[str]:
        """Start the command; ``max_file_bytes`` (bytes) limits the size of files, to simulate a full disk."""
        command = [
            *(sys.executable, "-m", "dcaseg.cli", "cohort", str(self.archive), "-o", str(self.out)),
            *("--bundle", str(self._bundle), "--device", "cpu", *OPTIONS),
            *("--dashboard-port", "0", *more),
        ]

        def limit() -> None:
            if max_file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)

    def run(self, *more: str, patience: float = 200) -> tuple[int, str]:
        process = self.start(*more)
        out, err = process.communicate(timeout=patience)
        return process.returncode, out + err

    def ledger(self) -> dict[str, tuple[str, str]]:
        """By source: status, and reason with notes."""
        if not (self.out / "cohort.sqlite").exists():
            return {}
        connection = sqlite3.connect(f"file:{self.out / 'cohort.sqlite'}?mode=ro", uri=True, timeout=20)
        try:
            rows = connection.execute("SELECT source, status, reason || notes || outcome FROM cases").fetchall()
        except sqlite3.OperationalError:
            # The file is new and has no tables yet.
            rows = []
        finally:
            connection.close()
        return {source: (status, text) for source, status, text in rows}

    def require_all_accounted_for(self) -> None:
        ledger = self.ledger()
        assert set(ledger) == set(EXPECTED)
        for source, (status, reason) in EXPECTED.items():
            assert ledger[source][0] == status, ledger[source]
            assert reason in ledger[source][1]
        folders = sorted((self.out / "cases").iterdir())
        # Only complete folders of segmented cases.
        assert len(folders) == count("ok")
        for folder in folders:
            assert (folder / "case.json").is_file()
            if (folder / "segmentation.dcm").exists():
                require_same_voxels(folder / "segmentation.dcm", sitk.ReadImage(str(folder / "labels.nrrd")), AMOS)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, coarse_phantom) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, coarse_phantom)
    return folder


@pytest.fixture(scope="module")
def finished(archive, small_bundle, tmp_path_factory) -> Cohort:
    """A cohort that ran without a disturbance."""
    cohort = Cohort(archive, tmp_path_factory.mktemp("finished") / "out", small_bundle)
    process = cohort.start("--workers", "1")
    while process.poll() is None:
        cohort.listening |= _listening_addresses(process.pid)
        time.sleep(0.3)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert SUMMARY in out, out
    return cohort


@pytest.fixture
def cohort(archive, small_bundle, tmp_path) -> Cohort:
    return Cohort(archive, tmp_path / "out", small_bundle)


@pytest.mark.slow
def test_one_command_turns_a_mixed_archive_into_segmentations_ledger_and_report(finished):
    finished.require_all_accounted_for()
    dicom = [folder for folder in (finished.out / "cases").iterdir() if (folder / "segmentation.dcm").exists()]
    assert len(dicom) == 3


@pytest.mark.slow
def test_dask_listens_on_loopback_only(finished):
    assert finished.listening == {"127.0.0.1"}


@pytest.mark.slow
def test_the_report_is_one_file_that_names_every_case(finished):
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    for source, (status, reason) in EXPECTED.items():
        assert source in page
        if status != "ok":
            assert reason in page
    # The page loads nothing from elsewhere, and all links lead into the cohort's own folder.
    fetched = r"""src=["'](?!data:)|href=["'](?!cases/|volumes\.csv)|url\(|@import|<script |https?://"""
    assert not re.search(fetched, page)
    links = set(re.findall(r'href="([^"]*)"', page))
    assert links and all((finished.out / unquote(link)).exists() for link in links)
    assert page.count("data:image/jpeg;base64,") >= 5


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_starts_no_workers(finished, dca, small_bundle, monkeypatch):
    from dcaseg.cohort import dask_workers as workers

    monkeypatch.setattr(workers, "local_client", lambda *_: pytest.fail("workers were started"))
    before = {file: file.stat().st_mtime_ns for file in (finished.out / "cases").rglob("*")}
    done = dca("cohort", finished.archive, "-o", finished.out, "--bundle", small_bundle, *OPTIONS)
    assert (done.code, done.out.splitlines()[0]) == (0, f"{SUMMARY}.")
    assert {file: file.stat().st_mtime_ns for file in (finished.out / "cases").rglob("*")} == before
    finished.require_all_accounted_for()


@pytest.mark.slow
def test_a_second_run_on_a_folder_in_use_is_rejected(finished, dca, small_bundle):
    with locked(finished.out / LOCK):
        refused = dca("cohort", finished.archive, "-o", finished.out, "--bundle", small_bundle)
    assert refused.code == 2
    assert "Another run is using" in refused.err


def test_a_folder_with_other_files_is_not_changed(coarse_phantom, dca, small_bundle, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    refused = dca("cohort", coarse_phantom, "-o", tmp_path, "--bundle", small_bundle)
    assert refused.code == 2
    assert "is not empty and is not a cohort" in refused.err
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_different_options_for_an_existing_cohort_are_rejected(finished, dca, small_bundle):
    refused = dca("cohort", finished.archive, "-o", finished.out, "--bundle", small_bundle, "--overlap", "0.1")
    assert refused.code == 2
    assert "a different model or different options" in refused.err


def test_a_cohort_is_not_continued_with_another_folder(dca, small_bundle, tmp_path):
    """CTs with equal paths would replace each other's results. A folder that was moved is accepted."""
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
    arguments = ("-o", tmp_path / "out", "--bundle", small_bundle)
    assert dca("cohort", tmp_path / "in", *arguments).code == 0
    refused = dca("cohort", tmp_path / "other", *arguments)
    assert refused.code == 2 and f"is the cohort of another folder, {tmp_path / 'in'}" in refused.err
    (tmp_path / "in").rename(tmp_path / "moved")
    assert dca("cohort", tmp_path / "moved", *arguments).code == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--format", "jpg"), "'jpg' is not a format"),
        (("--backend", "foo"), "no backend 'foo'"),
        (("--device", "foo"), "foo"),
        (("--case-timeout", "inf"), "case-timeout"),
        (("--memory", "inf"), "memory"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_impossible_option_is_refused_before_any_case(dca, small_bundle, coarse_phantom, tmp_path, option, said):
    refused = dca("cohort", coarse_phantom, "-o", tmp_path / "out", "--bundle", small_bundle, *option)
    assert refused.code == 2 and said in refused.err
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_gives_an_empty_report(dca, small_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    done = dca("cohort", tmp_path / "in", "-o", tmp_path / "out", "--bundle", small_bundle)
    assert done.code == 0
    assert "No CT was found." in done.out
    assert "No case has results yet" in (tmp_path / "out/report.html").read_text()


def test_a_scheduler_that_does_not_answer_is_an_error(coarse_phantom, dca, small_bundle, tmp_path, monkeypatch):
    from dcaseg.cohort import dask_workers as workers

    monkeypatch.setattr(workers, "_CONNECT_TIMEOUT", "1s")
    address = ("--scheduler", "tcp://127.0.0.1:9")
    refused = dca("cohort", coarse_phantom, "-o", tmp_path / "out", "--bundle", small_bundle, *address)
    assert refused.code == 2
    assert "does not answer" in refused.err


def test_workers_that_do_not_start_are_an_error(coarse_phantom, dca, small_bundle, tmp_path, monkeypatch):
    from dcaseg.cohort import dask_workers as workers

    monkeypatch.setattr(workers, "_START_SECONDS", 0.1)
    options = ("--workers", "1", "--device", "cpu", "--dashboard-port", "0")
    refused = dca("cohort", coarse_phantom, "-o", tmp_path / "out", "--bundle", small_bundle, *options)
    assert refused.code == 2
    assert "The worker processes did not start" in refused.err
    assert "The last run ended early. The worker processes did not start" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_every_case_is_accounted_for_after_kills_of_workers_and_program(cohort):
    dice = random.Random(7)
    victims = ["worker", "program", *dice.sample(["worker", "worker", "program", "program"], 4)]
    killed = []
    process = cohort.start("--workers", "1")
    for victim in victims:
        if process.poll() is not None:
            process = cohort.start("--workers", "1")
        workers = []
        while not workers and process.poll() is None:
            workers = _workers_of(process.pid)
            time.sleep(0.1)
        # From the worker's start, while it loads the model, to its second or third case.
        time.sleep(dice.uniform(0, 5))
        if process.poll() is None:
            # The worker seen before may just have been replaced.
            with suppress(psutil.NoSuchProcess, IndexError):
                (_workers_of(process.pid)[0] if victim == "worker" else process).kill()
                killed.append(victim)
        if victim == "program":
            process.communicate()
    process.communicate()
    assert {"worker", "program"} <= set(killed)
    for _ in range(3):
        code, text = cohort.run("--workers", "1")
        assert code == 0, text
        if SUMMARY in text:
            break
    cohort.require_all_accounted_for()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_case_too_large_for_the_memory_fails_without_affecting_others(small_bundle, tmp_path, coarse_phantom):
    archive = tmp_path / "in"
    archive.mkdir()
    for number in range(3):
        shutil.copy(coarse_phantom / "ct.nii.gz", archive / f"{number}.nii.gz")
    # 1.6 GB of voxels in a file of a few MB; a worker may use 1 GiB.
    empty = gzip.compress(bytes(2**24), 1)
    header = gzip.compress(_nifti_header((1000, 1000, 800)), 1)
    (archive / "huge.nii.gz").write_bytes(header + empty * (2 * 1000 * 1000 * 800 // 2**24 + 1))
    cohort = Cohort(archive, tmp_path / "out", small_bundle)
    code, text = cohort.run("--workers", "1", "--memory", "1", patience=550)
    assert code == 0, text
    ledger = cohort.ledger()
    status, reason = ledger.pop("huge.nii.gz")
    assert status == "failed"
    assert "the last time while it ran this case alone" in reason
    assert {status for status, _ in ledger.values()} == {"ok"}
    assert len(list((cohort.out / "cases").iterdir())) == 3


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_the_next_one_finishes(cohort):
    process = cohort.start("--workers", "1", max_file_bytes=60_000)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    assert "The disk is full" in err
    full = [reason for _, reason in cohort.ledger().values() if "The disk is full" in reason]
    assert full
    code, text = cohort.run("--workers", "1")
    assert code == 0, text
    cohort.require_all_accounted_for()


@pytest.mark.slow
def test_ctrl_c_stops_the_run_and_the_next_one_finishes(cohort):
    process = cohort.start("--workers", "1")
    while process.poll() is None and not any(status == "ok" for status, _ in cohort.ledger().values()):
        time.sleep(0.3)
    # Like a terminal: to the program and its workers.
    for each in _family(process.pid):
        each.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    last = err.strip().splitlines()[-1]
    assert process.returncode == 130 and last.startswith("Canceled. "), err
    assert f"cases are done and saved in {cohort.out}. To continue with the other" in last
    code, text = cohort.run("--workers", "1")
    assert code == 0, text
    cohort.require_all_accounted_for()


@pytest.mark.slow
def test_the_commands_of_the_kubernetes_manifest_do_the_same_work(cohort, running_scheduler):
    address, _, _ = running_scheduler
    in_place_of = {"/data/archive": str(cohort.archive), "/data/cohort": str(cohort.out), SCHEDULER: address}
    words = [in_place_of.get(word, word) for word in command("cohort")]
    assert words[:5] == ["dca", "cohort", str(cohort.archive), "-o", str(cohort.out)]
    code, text = cohort.run(*words[5:])
    assert code == 0, text
    cohort.require_all_accounted_for()


@pytest.mark.slow
def test_losing_the_scheduler_stops_the_run_without_losing_results(cohort, running_scheduler):
    address, scheduler, _ = running_scheduler
    process = cohort.start("--scheduler", address)
    while process.poll() is None and not any(status == "ok" for status, _ in cohort.ledger().values()):
        time.sleep(0.3)
    scheduler.kill()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert "The connection to the Dask scheduler was lost" in err
    pending = [source for source, (status, _) in cohort.ledger().items() if status == "pending"]
    page = (cohort.out / "report.html").read_text(encoding="utf-8")
    assert "The last run ended early. The connection to the Dask scheduler was lost." in page
    assert pending
    assert page.count(">pending</td>") == len(pending)
    code, text = cohort.run("--workers", "1")
    assert code == 0, text
    cohort.require_all_accounted_for()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1120, 390])
def test_a_browser_renders_the_report_wide_and_narrow(width, finished, tmp_path):
    picture = tmp_path / "report.png"
    subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400", f"--screenshot={picture}"),
            (finished.out / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    shot = sitk.GetArrayFromImage(sitk.ReadImage(str(picture)))
    assert shot.shape[:2] == (2400, width)
    # CT pictures, colored organs and text: many colors, so not a blank page.
    assert len({tuple(pixel) for pixel in shot[::3, ::3].reshape(-1, shot.shape[2])}) > 500
    assert (shot[:800, :, :3].std(axis=(0, 1)) > 15).all()


@pytest.fixture
def running_scheduler(tmp_path) -> Iterator[tuple[str, psutil.Process, psutil.Process]]:
    """A Dask scheduler and one worker, started like in the Kubernetes manifest, but on this machine and a free port."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    file = tmp_path / "scheduler.json"

    def start(words: list[str], *more: str) -> subprocess.Popen[bytes]:
        assert words[0] == "dask"
        local = [sys.executable, "-m", "dask", *words[1:], "--host", "127.0.0.1", *more]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(local, cwd=tmp_path, env=environment, **quiet)

    in_place_of = {"8786": "0", "/tmp": str(tmp_path)}
    scheduler = start([in_place_of.get(word, word) for word in command("scheduler")], "--scheduler-file", str(file))
    while not file.exists():
        assert scheduler.poll() is None
        time.sleep(0.1)
    in_place_of[SCHEDULER] = json.loads(file.read_text())["address"]
    worker = start([in_place_of.get(word, word) for word in command("worker")], "--death-timeout", "20")
    yield json.loads(file.read_text())["address"], psutil.Process(scheduler.pid), psutil.Process(worker.pid)
    for process in (worker, scheduler):
        for child in _family(process.pid):
            child.kill()
        process.wait()


def _nifti_header(size: tuple[int, int, int]) -> bytes:
    """Header of a NIfTI file with int16 voxels of 1 mm; ``size`` is (x, y, z)."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<fff", header, 108, 352.0, 1.0, 0.0)
    struct.pack_into("<hh", header, 252, 1, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a running program."""
    return [child for child in _family(pid)[1:] if "spawn_main" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _listening_addresses(pid: int) -> set[str]:
    found = set()
    for process in _family(pid):
        with suppress(psutil.Error):
            found |= {each.laddr.ip for each in process.net_connections("inet") if each.status == "LISTEN"}
    return found
