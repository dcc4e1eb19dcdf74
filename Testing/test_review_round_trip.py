"""The whole workflow: segment, review, correct, save, load, segment again, add to a training set, train, segment."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("PySide6", reason="needs PySide6")
pytestmark = [pytest.mark.scene, pytest.mark.slow, pytest.mark.usefixtures("one_model")]

from dcaseg.organs import AMOS
from module_driving import apply, message, read_scene, wait_for_end
from review_case import labels_of


def command(*arguments: object) -> str:
    """Run ``dca`` in a separate process."""
    line = [sys.executable, "-m", "dcaseg.cli", *(str(each) for each in arguments)]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def stroke(panel: Any, segment_id: str) -> None:
    """Paint everywhere with the Segment Editor's logic; the panel's settings limit what changes."""
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.SetSegmentEditorNode(panel.correctPanel.ui.segmentEditor.mrmlSegmentEditorNode())
    logic.UpdateReferenceGeometryImage()
    logic.ResetModifierLabelmapToDefault()
    logic.GetModifierLabelmap().GetPointData().GetScalars().Fill(1)
    logic.ModifySegmentByLabelmap(
        logic.GetSegmentationNode(), segment_id, logic.GetModifierLabelmap(), logic.ModificationModeAdd,
        (0, -1, 0, -1, 0, -1), True, False,
    )  # fmt: skip


def segmented(panel: Any, fake: Any) -> Any:
    apply(panel)
    wait_for_end(panel, fake)
    nodes = panel.reviewPanel._nodes
    assert nodes is not None, message(panel)
    return nodes


# On a busy computer, the commands alone take minutes because each of them loads PyTorch.
@pytest.mark.timeout(900)
def test_the_whole_workflow(
    module_panel, warm_worker, fake_slicer, coarse_phantom, small_bundle, monkeypatch, tmp_path
):
    from DCASegmentationLib.scene.volumes import show_ct
    from DCASegmentationLib.widgets.segment_control import formatReplacementQuestion

    panel, review = module_panel, module_panel.reviewPanel
    panel.parameters.inputVolume = show_ct(sitk.ReadImage(str(coarse_phantom / "ct.nii.gz")), "CT")
    nodes = segmented(panel, fake_slicer)
    automatic = labels_of(nodes)
    findings = review._findings
    assert len(findings) > 3 and review.ui.checkedBar.text == f"0 of {len(findings)} checked"

    # Accept the experts' alternative for one finding, and paint within another.
    row = next(row for row, finding in enumerate(findings) if finding.alternative is not None)
    review.goTo(row)
    review.ui.suggestionButton.click()
    accepted = labels_of(nodes)
    assert (accepted != automatic).any()
    painted = next(each for each, finding in enumerate(findings) if finding.organ != findings[row].organ)
    review.goTo(painted)
    review.ui.editButton.click()
    fake_slicer.process_events()
    segment_id = panel.correctPanel.ui.segmentEditor.currentSegmentID()
    stroke(panel, segment_id)
    fake_slicer.process_events(0.7)
    corrected = labels_of(nodes)
    assert (corrected != accepted).any()
    words = [review.ui.findingsTable.item(each, 2).text() for each in (row, painted)]
    assert words[1] == "Corrected" and words[0] in ("Accepted", "Corrected")
    key = findings[painted].organ
    review.ui.changesButton.checked = True
    tick(review, key)

    # Save, load, and segment again: the corrections are kept.
    scene = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(scene))
    slicer.mrmlScene.Clear(0)
    read_scene(scene, fake_slicer)
    assert [review.ui.findingsTable.item(each, 2).text() for each in (row, painted)] == words
    np.testing.assert_array_equal(labels_of(review._nodes), corrected)
    panel.parameters.outputSegmentation = panel.parameters.resultSegmentation
    if formatReplacementQuestion(panel.parameters.outputSegmentation, keepCorrected=True):
        fake_slicer.dialogs.answer(True)
    nodes = segmented(panel, fake_slicer)
    name = AMOS.by_key[key].name
    assert "Kept because corrected or accepted" in message(panel) and name in message(panel)
    label = AMOS.by_key[key].label
    np.testing.assert_array_equal(labels_of(nodes) == label, corrected == label)

    # Add the case to a training set, train a few steps, export a model, and segment with it.
    training = tmp_path / "training"
    fake_slicer.dialogs.answer(str(training))
    review.ui.trainingSetButton.click()
    fake_slicer.wait_for(lambda: not review._writer.isRunning, 120)
    assert "Added as ct-" in review.ui.reviewMessageLabel.text and name in review.ui.reviewMessageLabel.text
    (entry,) = json.loads((training / "dataset.json").read_text())["training"]
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(training / entry["label"])))
    np.testing.assert_array_equal(written == label, corrected == label)
    assert label not in entry["unannotated"] and len(entry["unannotated"]) >= 1
    run, model = tmp_path / "run", tmp_path / "models" / "corrected"
    model.parent.mkdir()
    few_steps = ("--steps", 2, "--batch", 1, "--device", "cpu")
    command("train", "-o", run, "--init", small_bundle, "--data", training, *few_steps)
    command("bundle", "export", run, "-o", model, "--name", "corrected")
    monkeypatch.setenv("DCA_MODELS", str(model.parent))
    panel.parameters.modelName = "corrected"
    panel.segmentControl.updateModels()
    assert panel.segmentPanel.model is not None and panel.segmentPanel.model.metadata.name == "corrected"
    panel.parameters.outputSegmentation = None
    again = segmented(panel, fake_slicer)
    assert again.segmentation is not nodes.segmentation
    assert len(review._findings) > 0


def tick(review: Any, key: str) -> None:
    import qt

    table = review.ui.changesTable
    row = next(row for row in range(table.rowCount) if table.item(row, 0).data(qt.Qt.UserRole) == key)
    table.item(row, 0).setCheckState(qt.Qt.Checked)
