"""The module's self-test as Slicer runs it with --testing, with and without PyTorch; it asks and leaves nothing."""

from __future__ import annotations

import logging
import sys
import unittest
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model")]
slicer = pytest.importorskip("slicer")

from dcaseg.errors import UserError
from module_driving import temporary_files, worker_processes


@pytest.fixture(autouse=True)
def testing_mode(fake_slicer) -> None:
    fake_slicer.app._is_testing = True


def run_as_ctest_does(caplog: Any) -> tuple[unittest.TestResult, str]:
    """Run the self-test as ``slicer.testing.runUnitTest`` does for CTest; returns the result and the log."""
    caplog.set_level(logging.INFO)
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromName("DCASegmentation").run(result)
    return result, caplog.text


@pytest.mark.slow
def test_with_pytorch_a_phantom_is_segmented_and_no_process_is_left_running(module_widget, fake_slicer, caplog):
    before = worker_processes()
    result, log = run_as_ctest_does(caplog)
    assert result.wasSuccessful() and result.testsRun >= 4, (result.errors, result.failures)
    assert "The phantom is segmented" in log and "Skipped" not in log
    assert worker_processes() == before and temporary_files() == []
    assert fake_slicer.dialogs.shown == []


@pytest.mark.slow
def test_without_pytorch_it_fails_unless_told_to_skip(module_widget, fake_slicer, caplog, monkeypatch):
    monkeypatch.delenv("DCA_TEST_MAY_SKIP", raising=False)
    fake_slicer.torch.is_installed = False
    result, _log = run_as_ctest_does(caplog)
    assert len(result.failures) == 1 and "set DCA_TEST_MAY_SKIP=1 to skip" in result.failures[0][1]


def test_only_the_segmentation_is_skipped_on_request(module_widget, fake_slicer, caplog, monkeypatch):
    monkeypatch.setenv("DCA_TEST_MAY_SKIP", "1")
    before = worker_processes()
    fake_slicer.torch.is_installed = False
    result, log = run_as_ctest_does(caplog)
    assert result.wasSuccessful(), (result.errors, result.failures)
    assert "Skipped: segmentation needs PyTorch" in log and "organs are imported" in log
    assert not fake_slicer.torch.is_installed
    assert worker_processes() == before and fake_slicer.dialogs.shown == []


def test_reload_and_test_runs_the_same(module_widget, module, fake_slicer, caplog, monkeypatch):
    monkeypatch.setenv("DCA_TEST_MAY_SKIP", "1")
    fake_slicer.torch.is_installed = False
    caplog.set_level(logging.INFO)
    slicer.modules.DCASegmentationInstance.runTest()
    assert "Skipped" in caplog.text and "The parameter node keeps choices" in caplog.text
    assert module_widget.panel.isEntered


def test_nothing_is_installed_in_testing_mode(fake_slicer):
    from DCASegmentationLib import requirements

    fake_slicer.torch.is_installed = False
    with pytest.raises(UserError, match="testing mode"):
        requirements.installTorch(print)
    with pytest.raises(UserError, match="testing mode"):
        requirements.installExtension()
    assert not fake_slicer.torch.is_installed


def test_loading_the_module_loads_no_pytorch():
    import subprocess

    library = Path(__file__).parents[1] / "DCASegmentation"
    code = (
        f"import sys; sys.path[:0] = [{str(library)!r}, {str(Path(__file__).parent)!r}]\n"
        "import tempfile; from pathlib import Path\n"
        "from fake_slicer.fake_slicer import FakeSlicer, installed\n"
        "with tempfile.TemporaryDirectory() as folder, installed(FakeSlicer(Path(folder))) as fake:\n"
        "    fake.make_widget(fake.load_module()).cleanup()\n"
        "raise SystemExit(bool({'torch', 'monai', 'matplotlib'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
