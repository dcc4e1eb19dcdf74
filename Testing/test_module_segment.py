"""The panel's Segment section driven as a user drives it: on a real scene, with the real worker and a tiny model."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.scene
slicer = pytest.importorskip("slicer")

from scene_case import small_ct, small_labels  # noqa: E402


@pytest.fixture(autouse=True)
def a_computer_with_one_model(small_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def ct(slicer_bench) -> Any:
    return add_ct("CT")


@pytest.fixture
def panel(ct, module_widget) -> Any:
    """The module's panel opened on a scene with a CT."""
    return module_widget


def add_ct(name: str) -> Any:
    from DCASegmentationLib.scene.volumes import show_ct

    return show_ct(small_ct(), name)


def apply(panel: Any) -> None:
    assert panel.segmentPanel.ui.applyButton.text == "Apply"
    panel.segmentPanel.ui.applyButton.click()


def wait_for_end(panel: Any, bench: Any) -> None:
    bench.wait_for(lambda: not panel.logic.isRunning, 120)


def message(panel: Any) -> str:
    return panel.segmentPanel.ui.messageLabel.text


def segmentations() -> list[Any]:
    scene = slicer.mrmlScene
    return [
        scene.GetNthNodeByClass(i, "vtkMRMLSegmentationNode")
        for i in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))
    ]


def temporary_files() -> list[Path]:
    return list(Path(slicer.app.temporaryPath).iterdir())


def worker_process_id() -> int:
    """The child of this process that runs the worker, found as a task manager finds it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid() and b"DCASegmentationLib.worker" in command:
            return int(process.name)
    raise AssertionError("no worker runs")


def wait_for_progress(panel: Any, bench: Any) -> None:
    """Until the worker has begun: it has told of progress beyond that of the export."""
    bench.wait_for(lambda: panel.segmentPanel.ui.progressBar.value >= 4 or not panel.logic.isRunning, 120)
    assert panel.logic.isRunning


def test_one_click_segments_the_open_ct(panel, ct, slicer_bench):
    assert panel.segmentPanel.ui.inputVolumeSelector.currentNode() is ct
    apply(panel)
    assert panel.segmentPanel.ui.applyButton.text == "Cancel"
    wait_for_end(panel, slicer_bench)
    (segmentation,) = segmentations()
    assert segmentation.GetName() == "CT organs"
    assert segmentation.GetSegmentation().GetNumberOfSegments() > 0
    assert "organs were segmented" in message(panel)
    assert panel.segmentPanel.ui.applyButton.text == "Apply"
    assert not panel.ui.resultSection.collapsed
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1 + 4 * 3 + 3
    assert temporary_files() == []


def test_the_segmentation_comes_under_the_study_of_its_ct(panel, ct, slicer_bench):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient")
    study = hierarchy.CreateStudyItem(patient, "Study")
    item = hierarchy.GetItemByDataNode(ct) or hierarchy.CreateItem(study, ct)
    hierarchy.SetItemParent(item, study)
    apply(panel)
    wait_for_end(panel, slicer_bench)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentations()[0])) == study


def test_cancel_stops_the_run_and_leaves_the_scene_as_it_was(panel, slicer_bench):
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    apply(panel)
    panel.segmentPanel.ui.applyButton.click()
    wait_for_end(panel, slicer_bench)
    assert "Cancelled" in message(panel)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert temporary_files() == []
    apply(panel)
    wait_for_end(panel, slicer_bench)
    assert len(segmentations()) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the process table of Linux")
def test_a_worker_killed_from_outside_is_told_and_the_next_run_works(panel, slicer_bench):
    apply(panel)
    wait_for_progress(panel, slicer_bench)
    os.kill(worker_process_id(), signal.SIGKILL)
    wait_for_end(panel, slicer_bench)
    assert "<b>" in message(panel) and segmentations() == [] and temporary_files() == []
    apply(panel)
    wait_for_end(panel, slicer_bench)
    assert len(segmentations()) == 1


def test_a_ct_deleted_during_the_run_gives_no_result(panel, ct, slicer_bench):
    apply(panel)
    slicer.mrmlScene.RemoveNode(ct)
    wait_for_end(panel, slicer_bench)
    assert "The CT was removed" in message(panel)
    assert segmentations() == [] and temporary_files() == []


def test_a_scene_closed_during_the_run_gives_no_result(panel, slicer_bench):
    apply(panel)
    slicer.mrmlScene.Clear(0)
    wait_for_end(panel, slicer_bench)
    assert "The scene was closed" in message(panel)
    assert segmentations() == [] and temporary_files() == []
    assert not panel.segmentPanel.ui.applyButton.enabled


def test_two_cts_get_a_segmentation_each(panel, slicer_bench):
    apply(panel)
    wait_for_end(panel, slicer_bench)
    panel._parameterNode.inputVolume = add_ct("Second")
    apply(panel)
    wait_for_end(panel, slicer_bench)
    assert [node.GetName() for node in segmentations()] == ["CT organs", "Second organs"]


def test_without_a_ct_there_is_nothing_to_apply(module_widget):
    assert not module_widget.segmentPanel.ui.applyButton.enabled
    assert module_widget.segmentPanel.ui.applyButton.toolTip == "Select a CT first."


def test_an_mr_volume_is_refused_by_name(panel, ct, slicer_bench):
    # Every voxel positive and none alike its neighbor, as in MR.
    noise = np.random.default_rng(1).integers(0, 900, slicer.util.arrayFromVolume(ct).shape)
    slicer.util.updateVolumeFromArray(ct, noise.astype(np.int16))
    apply(panel)
    wait_for_end(panel, slicer_bench)
    assert "looks like an MR or another modality" in message(panel)
    assert segmentations() == []


def test_only_own_segments_of_an_existing_segmentation_are_replaced_after_a_question(panel, slicer_bench):
    apply(panel)
    wait_for_end(panel, slicer_bench)
    (segmentation,) = segmentations()
    segmentation.GetSegmentation().AddEmptySegment("mine", "My own")
    volumes = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    panel._parameterNode.outputSegmentation = segmentation
    slicer_bench.dialogs.answer(False, True)
    apply(panel)
    assert not panel.logic.isRunning
    apply(panel)
    wait_for_end(panel, slicer_bench)
    segments = segmentation.GetSegmentation().GetSegmentIDs()
    assert "mine" in segments and len(segments) > 1 and len(set(segments)) == len(segments)
    assert segmentations() == [segmentation]
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == volumes


def test_a_segmentation_of_another_ct_is_refused(panel, slicer_bench):
    from DCASegmentationLib.organs import AMOS
    from DCASegmentationLib.scene.segmentation import show_segmentation

    other = show_segmentation(small_labels(), AMOS, add_ct("Other"), "Other organs")
    panel._parameterNode.outputSegmentation = other
    apply(panel)
    assert "belongs to another CT" in message(panel)
    assert not panel.logic.isRunning


def test_a_transform_that_is_not_linear_has_to_be_hardened(panel, ct):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    apply(panel)
    assert "not linear" in message(panel) and "Harden" in message(panel)


def test_a_temporary_folder_that_is_not_there_is_named(panel, monkeypatch):
    monkeypatch.setattr(slicer.app, "temporaryPath", "/no/such/folder")
    apply(panel)
    assert "/no/such/folder" in message(panel)


def test_a_damaged_model_is_named_and_nothing_changes(panel, slicer_bench, small_bundle, monkeypatch, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(small_bundle, broken)
    (broken / "models" / "model.pt").write_bytes(b"nonsense")
    monkeypatch.setenv("DCA_MODELS", str(broken))
    panel.onSetupChanged()
    panel.onModelChosen("broken")
    apply(panel)
    wait_for_end(panel, slicer_bench)
    assert "model.pt" in message(panel)
    assert segmentations() == []


def test_inside_a_region_only_that_part_is_computed(panel, ct, slicer_bench):
    bounds = [0.0] * 6
    ct.GetRASBounds(bounds)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    roi.SetCenter(*[(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)])
    roi.SetSize(100.0, 100.0, 120.0)
    panel._parameterNode.regionOfInterest = roi
    apply(panel)
    wait_for_end(panel, slicer_bench)
    (segmentation,) = segmentations()
    found = [0.0] * 6
    segmentation.GetSegmentation().GetSegment(segmentation.GetSegmentation().GetNthSegmentID(0)).GetBounds(found)
    assert found[1] - found[0] < bounds[1] - bounds[0]


def test_choices_survive_saving_and_loading_the_scene(panel, module, slicer_bench, tmp_path):
    apply(panel)
    wait_for_end(panel, slicer_bench)
    panel._parameterNode.device = module.Device.CPU
    path = tmp_path / "scene.mrb"
    slicer.mrmlScene.WriteToMRB(str(path))
    slicer.mrmlScene.Clear(0)
    assert panel._parameterNode.resultSegmentation is None
    slicer.mrmlScene.ReadFromMRB(str(path), False)
    slicer_bench.process_events()
    assert panel._parameterNode.device is module.Device.CPU
    assert panel._parameterNode.inputVolume.GetName() == "CT"
    assert panel._parameterNode.resultSegmentation.GetName() == "CT organs"
    assert not panel.ui.resultSection.collapsed


def test_a_script_gets_the_nodes_without_any_widget(ct, module, slicer_bench):
    logic = module.DCASegmentationLogic()
    progress: list[float] = []
    try:
        nodes = logic.segment(ct, device="cpu", onProgress=lambda fraction, text: progress.append(fraction))
    finally:
        logic.stop()
    assert nodes.segmentation in segmentations() and set(nodes.attention) == {1, 2, 3, 4}
    assert progress == sorted(progress) and progress[0] == 0.0


def test_a_script_is_told_by_an_exception_what_cannot_be_segmented(module, slicer_bench):
    from DCASegmentationLib.errors import UserError

    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    with pytest.raises(UserError, match="Labels is a label map"):
        module.DCASegmentationLogic().segment(labels)


def test_the_self_test_of_the_module_passes(panel, module, slicer_bench):
    module.DCASegmentationTest().runTest()
    assert "Skipped" not in " ".join(slicer_bench.dialogs.texts)
