"""Reload in developer mode reloads the library too, also during a run, and broken code leaves the panel working."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model")]
slicer = pytest.importorskip("slicer")

from module_driving import (
    add_ct,
    apply,
    message,
    segmentations,
    started_worker_process_id,
    temporary_files,
    wait_for_end,
    worker_processes,
)
from worker_client import is_gone


@pytest.fixture(autouse=True)
def the_library_of_other_tests_stays() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    ours = ("DCASegmentation", "DCASegmentationLib", "dcaseg")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        sys.modules.pop(name)
        # A package kept in sys.modules would still have this test's submodules as attributes.
        package, _, submodule = name.rpartition(".")
        if package in before and name not in before:
            vars(before[package]).pop(submodule, None)
    sys.modules.update({name: module for name, module in before.items() if name.split(".")[0] in ours})


@pytest.mark.slow
def test_reloading_reloads_the_library_and_stops_a_run(module_widget, fake_slicer):
    library = sys.modules["DCASegmentationLib.widgets.segment_panel"]
    add_ct("CT")
    module_widget.enter()
    workers = worker_processes()
    apply(module_widget.panel)
    worker = started_worker_process_id(workers)
    module_widget.onReload()
    widget = slicer.modules.DCASegmentationWidget
    panel = widget.panel
    try:
        assert widget is not module_widget
        assert sys.modules["DCASegmentationLib.widgets.segment_panel"] is not library
        assert type(panel.segmentPanel) is sys.modules["DCASegmentationLib.widgets.segment_panel"].SegmentPanel
        assert is_gone(worker, 5) and temporary_files() == []
        assert panel.isEntered and panel.segmentPanel.ui.applyButton.enabled
        apply(panel)
        wait_for_end(panel, fake_slicer)
        assert len(segmentations()) == 1, message(panel)
    finally:
        widget.exit()
        widget.cleanup()


def test_broken_code_is_not_loaded_and_the_panel_keeps_working(module_widget, fake_slicer, tmp_path, monkeypatch):
    modules = {name: module for name, module in sys.modules.items() if name.startswith("DCASegmentation")}
    broken = tmp_path / "DCASegmentation.py"
    broken.write_text(Path(slicer.modules.dcasegmentation.path).read_text(encoding="utf-8") + "\ndef half(:\n")
    monkeypatch.setattr(slicer.modules.dcasegmentation, "path", str(broken))
    with pytest.raises(SyntaxError):
        module_widget.onReload()
    assert slicer.modules.DCASegmentationWidget is module_widget
    assert {name: sys.modules[name] for name in modules} == modules


def test_a_panel_that_could_not_be_created_raises_only_once(module, fake_slicer, monkeypatch):
    def fail(*arguments):
        raise OSError("the .ui files are missing")

    monkeypatch.setattr(module, "ModulePanel", fail)
    with pytest.raises(OSError, match="missing"):
        fake_slicer.make_widget(module)
    widget = slicer.modules.DCASegmentationWidget
    # Slicer calls these nevertheless, at the latest when it closes.
    widget.enter()
    widget.exit()
    widget.cleanup()
