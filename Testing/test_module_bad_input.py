"""Bad input, and failures during a run: the panel reports them, the scene stays unchanged, and the next Apply works."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.scene,
    pytest.mark.skipif(os.name != "posix", reason="ends processes by signals"),
    pytest.mark.usefixtures("one_model"),
]
slicer = pytest.importorskip("slicer")

from dcaseg.worker.protocol import VERSION
from module_driving import (
    add_ct,
    apply,
    message,
    node_ids,
    segmentations,
    started_worker_process_id,
    temporary_files,
    wait_for_end,
    worker_process_id,
    worker_processes,
)
from scene_case import small_labels
from worker_client import is_gone


@pytest.fixture
def ct(fake_slicer) -> Any:
    return add_ct("CT")


@pytest.fixture
def cold_panel(ct, module_panel) -> Any:
    """The panel, which will start its own worker."""
    return module_panel


@pytest.fixture
def panel(warm_worker, cold_panel) -> Any:
    return cold_panel


@pytest.fixture
def refuses(panel, fake_slicer) -> Callable[..., None]:
    """``refuses(*words)``: Apply fails with a message with these words and a remedy; the scene is unchanged."""

    def check(*words: str) -> None:
        before = node_ids()
        apply(panel)
        wait_for_end(panel, fake_slicer)
        for word in words:
            assert word in message(panel)
        problem, _, remedy = message(panel).partition("</b>")
        assert problem.startswith("<b>") and remedy.strip(), "the message says what is wrong and what to do"
        assert node_ids() == before
        assert temporary_files() == []
        assert panel.segmentPanel.ui.applyButton.text == "Apply"

    return check


def still_works(panel: Any, fake: Any) -> None:
    apply(panel)
    wait_for_end(panel, fake)
    assert "organs were segmented" in message(panel)
    # A result keeps its maps as files until it is deleted; a run leaves no other files.
    kept = [Path(each.GetAttribute("DCASegmentation.maps")) for each in segmentations()]
    assert kept and sorted(temporary_files()) == sorted(kept)


def test_without_a_ct_there_is_nothing_to_apply(module_panel):
    assert not module_panel.segmentPanel.ui.applyButton.enabled
    assert module_panel.segmentPanel.ui.applyButton.toolTip == "Select a CT first."


def test_an_mr_volume_is_rejected_by_name(panel, ct, fake_slicer, refuses):
    # All voxels are positive and differ from their neighbors, as in MR.
    noise = np.random.default_rng(1).integers(0, 900, slicer.util.arrayFromVolume(ct).shape)
    slicer.util.updateVolumeFromArray(ct, noise.astype(np.int16))
    refuses("looks like an MR or another modality")
    panel.parameters.inputVolume = add_ct("Good")
    still_works(panel, fake_slicer)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("vtkMRMLLabelMapVolumeNode", "is a label map, not a CT"),
        ("vtkMRMLVectorVolumeNode", "is not a scalar volume"),
        ("vtkMRMLScalarVolumeNode", "has no voxels"),
    ],
)
def test_a_node_that_is_not_a_ct_is_rejected_by_name(panel, refuses, kind, problem):
    panel.parameters.inputVolume = slicer.mrmlScene.AddNewNodeByClass(kind, "Something")
    refuses("Something", problem)


def test_a_segmentation_of_another_ct_is_rejected(panel, refuses):
    from dcaseg.organs import AMOS
    from DCASegmentationLib.scene.segmentation import show_segmentation

    other = show_segmentation(small_labels(), AMOS, add_ct("Other"), "Other organs")
    panel.parameters.outputSegmentation = other
    refuses("Other organs", "belongs to another CT")


def test_a_nonlinear_transform_must_be_hardened(ct, refuses):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    refuses("not linear", "Harden")


def test_a_missing_temporary_folder_is_named(panel, monkeypatch):
    monkeypatch.setattr(slicer.app, "temporaryPath", "/no/such/folder")
    apply(panel)
    assert "/no/such/folder" in message(panel)


def test_an_error_that_nobody_expected_is_shown_and_the_next_run_works(panel, fake_slicer, monkeypatch):
    def fail(*arguments, **keywords):
        raise ValueError("negative dimensions")

    with monkeypatch.context() as broken:
        broken.setattr(panel.logic, "segment", fail)
        apply(panel)
    (shown,) = fake_slicer.dialogs.shown
    assert "could not be started" in shown.text and "negative dimensions" in shown.detail
    assert "negative dimensions" in fake_slicer.slot_errors.pop()
    assert panel.segmentPanel.ui.applyButton.text == "Apply" and panel.segmentPanel.ui.applyButton.enabled
    assert not panel.segmentPanel.isRunning


def test_a_read_only_temporary_folder_is_named(panel, fake_slicer, monkeypatch, tmp_path):
    # For root, only files provided by the kernel are read-only.
    folder = Path("/proc/self") if os.geteuid() == 0 else tmp_path / "read-only"
    if not folder.exists():
        folder.mkdir(mode=0o500)
    before = node_ids()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(slicer.app, "temporaryPath", str(folder))
        apply(panel)
        assert f"{folder} cannot be written to" in message(panel)
    assert node_ids() == before and not panel.logic.isRunning
    still_works(panel, fake_slicer)


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Imitate a full disk: no file can grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_before_the_run_is_reported(panel, fake_slicer, refuses):
    with no_file_over(1000):
        refuses("could not be written", "the disk is full")
    still_works(panel, fake_slicer)


def test_a_full_disk_at_the_end_of_the_run_is_reported(cold_panel, fake_slicer):
    with no_file_over(1000):
        # The worker keeps the limit it was started with; the limit of this process ends here.
        cold_panel.logic._getWorker().start()
    before = node_ids()
    apply(cold_panel)
    wait_for_end(cold_panel, fake_slicer)
    assert "<b>" in message(cold_panel) and "disk" in message(cold_panel)
    assert node_ids() == before and temporary_files() == []


def test_a_damaged_model_is_named(panel, small_bundle, monkeypatch, tmp_path, refuses):
    broken = tmp_path / "broken"
    shutil.copytree(small_bundle, broken)
    (broken / "models" / "model.safetensors").write_bytes(b"nonsense")
    monkeypatch.setenv("DCA_MODELS", str(broken))
    panel.segmentControl.updateModels()
    panel.parameters.modelName = "broken"
    refuses("model.safetensors")


@pytest.mark.slow
def test_a_model_deleted_during_a_run_affects_only_the_next_run(
    panel, fake_slicer, small_bundle, monkeypatch, tmp_path
):
    doomed = tmp_path / "doomed"
    shutil.copytree(small_bundle, doomed)
    monkeypatch.setenv("DCA_MODELS", os.pathsep.join([str(doomed), str(small_bundle)]))
    panel.segmentControl.updateModels()
    panel.parameters.modelName = "doomed"

    def delete(fraction: float, text: str) -> None:
        if text.startswith("Segmenting") and doomed.exists():
            shutil.rmtree(doomed)

    monkeypatch.setattr(panel.segmentPanel, "showProgress", delete)
    apply(panel)
    wait_for_end(panel, fake_slicer)
    assert not doomed.exists() and "organs were segmented" in message(panel)
    before = node_ids()
    apply(panel)
    wait_for_end(panel, fake_slicer)
    assert "<b>" in message(panel) and "doomed" in message(panel)
    assert node_ids() == before
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    panel.segmentControl.updateModels()
    panel.parameters.modelName = small_bundle.name
    still_works(panel, fake_slicer)


@pytest.fixture
def worker_from(module, monkeypatch, tmp_path) -> Callable[[str], None]:
    """``worker_from(source)``: the module starts this program as its worker; in it, REAL is the real library."""
    from DCASegmentationLib.worker_client import LIBRARY_FOLDER, WorkerProcess

    package = tmp_path / "library" / "dcaseg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")

    def use(source: str) -> None:
        (package / "worker.py").write_text(f"REAL = {str(LIBRARY_FOLDER)!r}\n{source}")

    monkeypatch.setattr(
        "DCASegmentationLib.logic.createWorker",
        lambda: WorkerProcess(sys.executable, package.parent),
    )
    return use


# The real worker, which waits in the phase named in a file, so that a test can kill it there.
STAYS_IN_PHASE = """
import sys, time, pathlib
for name in [name for name in sys.modules if name.startswith("dcaseg")]:
    del sys.modules[name]
sys.path.insert(0, REAL)
from dcaseg.worker import server as channel
from dcaseg.worker.__main__ import main

send = channel.Channel.send

def send_and_stay(self, event):
    send(self, event)
    phase = pathlib.Path(PHASE).read_text()
    if phase and event.type == "progress" and event.message.startswith(phase):
        time.sleep(60)

channel.Channel.send = send_and_stay
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the process table of Linux")
def test_a_worker_killed_in_any_phase_is_reported_and_the_next_run_works(
    worker_from, cold_panel, fake_slicer, monkeypatch, tmp_path
):
    phase_file = tmp_path / "phase"
    worker_from(f"PHASE = {str(phase_file)!r}\n{STAYS_IN_PHASE}")
    messages: list[str] = []
    shown = cold_panel.segmentPanel.showProgress
    monkeypatch.setattr(
        cold_panel.segmentPanel, "showProgress", lambda *arguments: (shown(*arguments), messages.append(arguments[1]))
    )
    before = node_ids()
    for phase in ("Checking the model", "Reading the CT", "Segmenting", "Writing"):
        phase_file.write_text(phase)
        messages.clear()
        apply(cold_panel)
        fake_slicer.wait_for(lambda phase=phase: any(text.startswith(phase) for text in messages), 120)
        os.kill(worker_process_id(), signal.SIGKILL)
        wait_for_end(cold_panel, fake_slicer)
        assert "was killed by" in message(cold_panel)
        assert node_ids() == before and temporary_files() == []
    phase_file.write_text("")
    still_works(cold_panel, fake_slicer)


def test_a_worker_killed_while_starting_is_reported(cold_panel, fake_slicer):
    before, workers = node_ids(), worker_processes()
    apply(cold_panel)
    os.kill(started_worker_process_id(workers), signal.SIGKILL)
    wait_for_end(cold_panel, fake_slicer)
    assert "was killed by" in message(cold_panel)
    assert node_ids() == before and temporary_files() == []


# Slicer's launcher: it runs Python, and ends when Python has.
LAUNCHER = """#!/bin/sh
"{python}" "$@"
[ $? -gt 1 ] && echo "error: [{python}] exit abnormally - Report the problem." >&2
exit 1
"""


@pytest.fixture
def launched_worker_from(worker_from, monkeypatch, tmp_path) -> Callable[[str], None]:
    """As ``worker_from``, but the worker is started by a launcher as in the official Slicer."""
    from DCASegmentationLib.worker_client import WorkerProcess

    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    monkeypatch.setattr(
        "DCASegmentationLib.logic.createWorker", lambda: WorkerProcess(str(launcher), tmp_path / "library")
    )
    return worker_from


@pytest.mark.parametrize("exit_code", [1, 9])
def test_any_end_that_is_an_error_may_be_a_lack_of_memory(launched_worker_from, cold_panel, fake_slicer, exit_code):
    end = "os.kill(os.getpid(), signal.SIGKILL)" if exit_code == 9 else "os._exit(1)"
    launched_worker_from(f"import os, signal, sys\nsys.stdin.readline()\n{end}\n")
    apply(cold_panel)
    wait_for_end(cold_panel, fake_slicer)
    assert "low on memory" in message(cold_panel)
    assert ("crashed, or was killed by" in message(cold_panel)) == (exit_code == 9)


# A worker that does not end by itself when a run is canceled.
DEAF = f"""
import json, os, sys, time
os.setsid()
print(json.dumps({{"type": "hello", "version": {VERSION}, "pid": os.getpid(), "library": ""}}), flush=True)
request = json.loads(sys.stdin.readline())
print(json.dumps({{"type": "progress", "id": request["id"], "fraction": 0.5, "message": "Deaf"}}), flush=True)
time.sleep(60)
"""


def test_on_windows_a_canceled_run_ends_after_its_worker_has(
    launched_worker_from, cold_panel, fake_slicer, monkeypatch
):
    from DCASegmentationLib import worker_client

    killed, was_gone = [], []

    def end_tree_later(pid: int) -> None:
        """As Windows' taskkill."""
        killed.append(pid)
        threading.Timer(0.5, os.killpg, [pid, signal.SIGKILL]).start()

    launched_worker_from(DEAF)
    shown = cold_panel.segmentPanel.showEnd
    monkeypatch.setattr(
        cold_panel.segmentPanel, "showEnd", lambda: (was_gone.append(is_gone(killed[0], 0.01)), shown())
    )
    apply(cold_panel)
    fake_slicer.wait_for(lambda: cold_panel.logic.workerPid is not None)
    fake_slicer.process_events(0.2)
    monkeypatch.setattr(worker_client, "_IS_WINDOWS", True)
    monkeypatch.setattr(worker_client, "_endTree", end_tree_later)
    cold_panel.segmentPanel.ui.applyButton.click()
    wait_for_end(cold_panel, fake_slicer)
    assert len(killed) == 1 and was_gone == [True] and temporary_files() == []


def test_a_temporary_folder_with_an_open_file_is_deleted_later(panel, fake_slicer, monkeypatch):
    """As Windows refuses to delete a file that another program has open."""
    from DCASegmentationLib import logic

    delete, attempts = shutil.rmtree, []

    def refuse_twice(folder, **options):
        attempts.append(folder)
        if len(attempts) > 2:
            delete(folder, **options)

    apply(panel)
    monkeypatch.setattr(logic.shutil, "rmtree", refuse_twice)
    panel.segmentPanel.ui.applyButton.click()
    wait_for_end(panel, fake_slicer)
    fake_slicer.wait_for(lambda: temporary_files() == [], 10)
    assert len(attempts) == 3


@pytest.mark.slow
def test_an_answer_that_is_not_json_is_reported_and_the_next_run_works(worker_from, cold_panel, fake_slicer, tmp_path):
    worker_from(
        "import os, pathlib, sys\n"
        f"flag = pathlib.Path({str(tmp_path / 'spoken')!r})\n"
        "if not flag.exists():\n"
        "    flag.touch()\n"
        "    print('Good morning', flush=True)\n"
        "    sys.stdin.read()\n"
        "os.environ['PYTHONPATH'] = REAL\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'dcaseg.worker'])\n"
    )
    before = node_ids()
    apply(cold_panel)
    wait_for_end(cold_panel, fake_slicer)
    assert "sent an invalid answer" in message(cold_panel)
    assert "Good morning" in cold_panel.segmentPanel.ui.logText.plainText
    assert node_ids() == before and temporary_files() == []
    still_works(cold_panel, fake_slicer)
