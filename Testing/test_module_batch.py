"""The Batch section, operated as a user does, with a real scene, the real worker, and a tiny model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model", "warm_worker")]
slicer = pytest.importorskip("slicer")
pytest.importorskip("highdicom", reason="the extra cohort is not installed")

import numpy as np
import SimpleITK as sitk

from dicom_archive import write_ct_series
from module_driving import add_ct, segmentations, temporary_files, worker_process_id
from scene_case import small_ct


@pytest.fixture
def panel(module_panel) -> Any:
    return module_panel


@pytest.fixture
def batch(panel) -> Any:
    """The Batch section, opened."""
    panel.ui.batchSection.collapsed = False
    return panel.batchPanel


@pytest.fixture
def archive(tmp_path) -> Path:
    """Two patients with a CT each, a localizer of three slices, and a series with a missing slice."""
    folder = tmp_path / "archive"
    for number in (1, 2):
        write_ct_series(folder / f"P{number}" / "ct", small_ct(), patient=f"P{number}", SeriesDescription="Abdomen")
    write_ct_series(folder / "P1" / "scout", small_ct()[:, :, :3], patient="P1", SeriesDescription="Scout")
    write_ct_series(folder / "P3" / "ct", small_ct(), patient="P3", SeriesDescription="Gap")
    sorted((folder / "P3" / "ct").iterdir())[5].unlink()
    return folder


def states(batch: Any) -> list[str]:
    return [case.state.name for case in batch.batch.cases]


def rows(batch: Any) -> list[tuple[str, str]]:
    table = batch.ui.batchTable
    return [(table.item(row, 0).text(), table.item(row, 1).text()) for row in range(table.rowCount)]


def select(batch: Any, row: int) -> None:
    batch.ui.batchTable.selectRow(row)


def add_scene(batch: Any, fake: Any) -> None:
    batch.ui.addSceneButton.click()
    fake.wait_for(lambda: batch.ui.addSceneButton.enabled)


def add_folder(batch: Any, fake: Any, folder: Path) -> None:
    fake.dialogs.answer(str(folder))
    batch.ui.addFolderButton.click()
    fake.wait_for(lambda: batch.ui.addFolderButton.text == "Add folder...")


def run_to_end(batch: Any, fake: Any) -> None:
    batch.ui.startButton.click()
    assert batch.ui.startButton.text == "Cancel all"
    fake.wait_for(lambda: not batch.isRunning, 120)


def item_of(node: Any) -> tuple[Any, int]:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return hierarchy, hierarchy.GetItemByDataNode(node)


@pytest.mark.slow
def test_all_cts_of_the_scene_are_segmented_by_one_worker(batch, panel, fake_slicer):
    cts = [add_ct(f"CT {number}") for number in (1, 2, 3)]
    add_scene(batch, fake_slicer)
    assert rows(batch) == [(f"CT {number}", "waiting") for number in (1, 2, 3)]
    batch.ui.startButton.click()
    fake_slicer.wait_for(lambda: rows(batch)[0][1].endswith("%"), 60)
    assert re.fullmatch(r"\d+%", rows(batch)[0][1])
    fake_slicer.wait_for(lambda: states(batch)[0] == "Done", 60)
    worker = worker_process_id()
    fake_slicer.wait_for(lambda: not batch.isRunning, 60)
    assert worker_process_id() == worker
    assert states(batch) == ["Done"] * 3
    assert [node.GetName() for node in segmentations()] == [f"CT {number} organs" for number in (1, 2, 3)]
    assert [node.GetNodeReference("DCASegmentation.ct") for node in segmentations()] == cts
    assert batch.ui.summaryLabel.text == "3 done"


def test_cts_that_have_a_result_are_not_added_again(batch, panel, fake_slicer):
    add_ct("First")
    add_scene(batch, fake_slicer)
    run_to_end(batch, fake_slicer)
    select(batch, 0)
    batch.ui.removeButton.click()
    assert rows(batch) == []
    add_scene(batch, fake_slicer)
    assert rows(batch) == []
    assert batch.ui.batchMessageLabel.text == "No CT in the scene is waiting to be segmented."
    add_ct("Second")
    add_scene(batch, fake_slicer)
    assert [name for name, _ in rows(batch)] == ["Second"]


@pytest.mark.slow
def test_results_appear_in_the_views_only_when_they_are_shown(batch, panel, fake_slicer):
    from DCASegmentationLib.scene.view_setup import get_view_node

    red = get_view_node("vtkMRMLSliceCompositeNode", "Red")
    cts = [add_ct(name) for name in ("First", "Second")]
    add_scene(batch, fake_slicer)
    run_to_end(batch, fake_slicer)
    first, second = segmentations()
    assert not first.GetDisplayNode().GetVisibility() and not second.GetDisplayNode().GetVisibility()
    for row, ct, shown, hidden in ((1, cts[1], second, first), (0, cts[0], first, second)):
        select(batch, row)
        batch.ui.showButton.click()
        fake_slicer.process_events(0.3)
        assert shown.GetDisplayNode().GetVisibility() and not hidden.GetDisplayNode().GetVisibility()
        assert panel.parameters.resultSegmentation is shown and panel.parameters.inputVolume is ct
        assert red.GetBackgroundVolumeID() == ct.GetID()


@pytest.mark.slow
def test_one_result_can_be_reviewed_while_the_next_ct_is_segmented(batch, panel, fake_slicer):
    for number in (1, 2):
        add_ct(f"CT {number}")
    add_scene(batch, fake_slicer)
    batch.ui.startButton.click()
    fake_slicer.wait_for(lambda: states(batch)[0] == "Done", 60)
    fake_slicer.wait_for(lambda: states(batch)[1] == "Running", 60)
    assert not panel.segmentPanel.ui.applyButton.enabled
    assert "batch is running" in panel.segmentPanel.ui.applyButton.toolTip
    select(batch, 0)
    batch.ui.showButton.click()
    fake_slicer.wait_for(lambda: panel.resultPanel.ui.segmentsTable.rowCount > 0, 20)
    fake_slicer.wait_for(lambda: not batch.isRunning, 60)
    assert panel.parameters.resultSegmentation.GetName() == "CT 1 organs", "the next result must not take its place"
    assert panel.segmentPanel.ui.applyButton.enabled


def test_a_failure_does_not_stop_the_others(batch, panel, fake_slicer):
    _good, bad, last = (add_ct(name) for name in ("Good", "Sheared", "Last"))
    add_scene(batch, fake_slicer)
    bad.SetIJKToRASDirections([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    slicer.mrmlScene.RemoveNode(last)
    run_to_end(batch, fake_slicer)
    assert states(batch) == ["Done", "Failed", "Failed"]
    select(batch, 1)
    assert "not at right angles" in batch.ui.caseLabel.text
    select(batch, 2)
    assert "The CT was removed from the scene." in batch.ui.caseLabel.text
    assert batch.ui.summaryLabel.text == "1 done, 2 failed"
    bad.SetIJKToRASDirections([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    select(batch, 1)
    batch.ui.retryButton.click()
    run_to_end(batch, fake_slicer)
    assert states(batch) == ["Done", "Done", "Failed"]


def test_an_unexpected_error_fails_only_its_own_case(batch, panel, fake_slicer, monkeypatch):
    for name in ("Bad", "Good"):
        add_ct(name)
    add_scene(batch, fake_slicer)
    start = panel.logic.start

    def start_good(job, *callbacks):
        if job.ct.GetName() == "Bad":
            raise KeyError("made up")
        start(job, *callbacks)

    monkeypatch.setattr(panel.logic, "start", start_good)
    run_to_end(batch, fake_slicer)
    assert states(batch) == ["Failed", "Done"]
    select(batch, 0)
    assert "could not be segmented (KeyError: 'made up')" in batch.ui.caseLabel.text
    assert fake_slicer.log.lines == ["Python: Bad could not be segmented."]
    fake_slicer.log.clear()


@pytest.mark.slow
def test_one_case_can_be_canceled_while_it_waits_or_runs(batch, panel, fake_slicer):
    for number in (1, 2, 3):
        add_ct(f"CT {number}")
    add_scene(batch, fake_slicer)
    batch.ui.startButton.click()
    fake_slicer.wait_for(lambda: states(batch)[0] == "Running", 20)
    for row in (1, 0):
        select(batch, row)
        batch.ui.cancelCaseButton.click()
    fake_slicer.wait_for(lambda: not batch.isRunning, 120)
    assert states(batch) == ["Cancelled", "Cancelled", "Done"]
    assert [node.GetName() for node in segmentations()] == ["CT 3 organs"]


def test_all_can_be_canceled(batch, panel, fake_slicer):
    for number in (1, 2, 3):
        add_ct(f"CT {number}")
    add_scene(batch, fake_slicer)
    batch.ui.startButton.click()
    fake_slicer.wait_for(lambda: states(batch)[0] == "Running", 20)
    batch.ui.startButton.click()
    fake_slicer.wait_for(lambda: not batch.isRunning, 60)
    assert states(batch) == ["Cancelled"] * 3
    assert segmentations() == [] and temporary_files() == []


@pytest.mark.slow
def test_closing_the_scene_ends_the_batch(batch, panel, fake_slicer):
    for number in (1, 2):
        add_ct(f"CT {number}")
    add_scene(batch, fake_slicer)
    batch.ui.startButton.click()
    fake_slicer.wait_for(lambda: states(batch)[0] == "Running", 20)
    slicer.mrmlScene.Clear(0)
    assert not batch.isRunning and rows(batch) == []
    fake_slicer.wait_for(lambda: not panel.logic.isRunning, 60)
    fake_slicer.process_events(0.3)
    assert segmentations() == [] and temporary_files() == []
    add_ct("New")
    add_scene(batch, fake_slicer)
    run_to_end(batch, fake_slicer)
    assert states(batch) == ["Done"]


@pytest.mark.slow
def test_a_folder_of_dicom_is_loaded_with_its_results_under_patient_and_study(batch, archive, fake_slicer):
    add_folder(batch, fake_slicer, archive)
    assert [name for name, _ in rows(batch)] == ["P1 Abdomen", "P2 Abdomen", "Gap"]
    assert states(batch) == ["Waiting", "Waiting", "Failed"], "the missing slice is found before anything is segmented"
    assert "2 CTs were added. 1 cannot be used" in batch.ui.batchMessageLabel.text
    assert "only 3 slices" in batch.ui.batchMessageLabel.text
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == [], "nothing is loaded before its turn"
    run_to_end(batch, fake_slicer)
    assert states(batch) == ["Done", "Done", "Failed"]
    expected = sitk.GetArrayFromImage(small_ct())
    for case, patient in zip(batch.batch.cases[:2], ("P1", "P2"), strict=True):
        segmentation = case.segmentation
        ct = segmentation.GetNodeReference("DCASegmentation.ct")
        assert ct.GetName() == f"{patient} Abdomen"
        assert np.array_equal(slicer.util.arrayFromVolume(ct), expected)
        hierarchy, item = item_of(segmentation)
        study = hierarchy.GetItemParent(item)
        assert study == hierarchy.GetItemParent(hierarchy.GetItemByDataNode(ct))
        assert hierarchy.GetItemName(hierarchy.GetItemParent(study)) == patient


@pytest.mark.slow
def test_with_a_folder_for_results_nothing_is_loaded_until_it_is_shown(batch, panel, archive, tmp_path, fake_slicer):
    shutil.rmtree(archive / "P3")
    add_folder(batch, fake_slicer, archive)
    results = tmp_path / "results"
    results.mkdir()
    fake_slicer.dialogs.answer(str(results))
    batch.ui.resultsSelector.currentIndex = 1
    batch.ui.resultsSelector.activated.emit(1)
    assert str(results) in batch.ui.resultsNoteLabel.text
    run_to_end(batch, fake_slicer)
    assert states(batch) == ["Done", "Done"]
    assert sorted(path.name for path in results.iterdir()) == ["P1 Abdomen", "P2 Abdomen"]
    assert segmentations() == [] and temporary_files() == []
    before = sorted(path.name for path in (results / "P2 Abdomen").iterdir())
    assert "labels.nrrd" in before and "ct.nrrd" not in before
    select(batch, 1)
    batch.ui.showButton.click()
    fake_slicer.wait_for(lambda: len(segmentations()) == 1, 30)
    fake_slicer.process_events(0.5)
    assert panel.parameters.inputVolume.GetName() == "P2 Abdomen"
    assert panel.parameters.resultSegmentation is segmentations()[0]
    assert panel.reviewPanel.ui.findingsTable.rowCount > 0
    assert sorted(path.name for path in (results / "P2 Abdomen").iterdir()) == before


def test_a_search_can_be_stopped_and_an_empty_folder_says_so(batch, archive, tmp_path, fake_slicer):
    fake_slicer.dialogs.answer(str(archive))
    batch.ui.addFolderButton.click()
    assert batch.ui.addFolderButton.text == "Stop search"
    batch.ui.addFolderButton.click()
    fake_slicer.process_events(0.2)
    assert rows(batch) == [] and batch.ui.batchMessageLabel.text == "The search was stopped."
    (tmp_path / "empty").mkdir()
    add_folder(batch, fake_slicer, tmp_path / "empty")
    assert "No CT was found" in batch.ui.batchMessageLabel.text


def test_a_folder_is_listed_with_what_cannot_be_used_and_nothing_is_loaded(batch, archive, fake_slicer):
    add_folder(batch, fake_slicer, archive)
    assert rows(batch)[:2] == [("P1 Abdomen", "waiting"), ("P2 Abdomen", "waiting")]
    name, status = rows(batch)[2]
    assert (name, status) == ("Gap", "failed")
    select(batch, 2)
    assert batch.ui.caseLabel.text.startswith("Gap: failed. ") and "slice" in batch.ui.caseLabel.text
    assert not batch.ui.retryButton.enabled and not batch.ui.showButton.enabled and batch.ui.removeButton.enabled
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
    select(batch, 0)
    batch.ui.cancelCaseButton.click()
    assert rows(batch)[0][1] == "canceled"
    batch.ui.retryButton.click()
    assert rows(batch)[0][1] == "waiting"
    add_folder(batch, fake_slicer, archive)
    assert len(rows(batch)) == 3, "a CT is not added twice"


@pytest.mark.parametrize("style", ["light", "dark"])
def test_the_section_is_no_wider_than_the_panel(batch, panel, archive, fake_slicer, screenshot, style):
    add_folder(batch, fake_slicer, archive)
    batch.ui.batchTable.selectAll()
    assert panel.widget.minimumSizeHint().width() <= 340
    assert screenshot(panel.ui.batchSection, f"batch-{style}", style).exists()


def test_result_folders_get_new_names_and_no_signs_that_a_disk_refuses(fake_slicer, tmp_path):
    from DCASegmentationLib.batch import _getUniquePath

    assert _getUniquePath(tmp_path, "P1: abdomen/pelvis?").name == "P1_ abdomen_pelvis_"
    assert _getUniquePath(tmp_path, "..").name == "CT"
    (tmp_path / "CT").mkdir()
    (tmp_path / "CT-2").symlink_to("nowhere")
    assert _getUniquePath(tmp_path, "/").name in ("_", "CT-3")
    assert _getUniquePath(tmp_path, "CT").name == "CT-3"
