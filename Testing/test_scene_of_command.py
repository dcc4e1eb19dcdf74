"""The scene that ``dca segment --review`` writes, opened in the module: its Review section shows the findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.organs import AMOS

pytestmark = pytest.mark.scene
slicer = pytest.importorskip("slicer")

from module_driving import read_scene


@pytest.fixture(scope="module")
def result(tmp_path_factory, small_bundle, coarse_phantom) -> Path:
    """The result folder of a run on the command line."""
    from dcaseg.cli import main

    folder = tmp_path_factory.mktemp("segment") / "result"
    # In its own process, the command has an empty scene. Here other tests may have left the module's parameter node, a
    # singleton that survives Clear, without its values.
    for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
        slicer.mrmlScene.RemoveNode(node)
    ct = coarse_phantom / "ct.nii.gz"
    arguments = ("segment", ct, "-o", folder, "--bundle", small_bundle, "--review", "--device", "cpu")
    assert main([str(each) for each in arguments]) == 0
    slicer.mrmlScene.Clear(0)
    return folder


@pytest.fixture
def opened(result, module_panel, fake_slicer) -> Any:
    """The module's panel, with the scene opened while the panel is shown."""
    read_scene(result / "scene.mrb", fake_slicer)
    return module_panel


def test_the_findings_of_the_file_are_listed_and_can_be_visited(opened, result):
    findings = json.loads((result / "review.json").read_text())["places"]
    review = opened.reviewPanel
    assert len(findings) > 3
    table = review.ui.findingsTable
    # The reason, in a few words, is below the organ.
    rows = [table.item(row, 0).text().split("\n") for row in range(table.rowCount)]
    assert [organ for organ, _ in rows] == [finding["name"] for finding in findings]
    reasons = {(finding["reasons"][0]["kind"], text) for finding, (_, text) in zip(findings, rows, strict=True)}
    assert ("volume", "unusual volume") in reasons
    assert len(reasons) == len(dict(reasons)) and all(text for _, text in reasons)
    assert review.ui.checkedBar.text == f"0 of {len(findings)} checked"
    review.goToNext()
    # The organ at the start of the sentence becomes the title.
    assert findings[0]["reasons"][0]["text"].split(": ", 1)[1] in review.ui.findingLabel.text
    assert not review.ui.reviewMessageLabel.visible, "the finding can be outlined"


def test_a_suggestion_is_accepted_as_in_a_run_of_the_module(opened, result):
    findings = json.loads((result / "review.json").read_text())["places"]
    row = next(row for row, finding in enumerate(findings) if finding["alternative"] is not None)
    rank = findings[row]["rank"]
    review = opened.reviewPanel
    review.goTo(row)
    review.ui.suggestionButton.click()
    files = (result / f"review_{name}.nrrd" for name in ("places", "alternative"))
    ranks, wanted = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files)
    nodes = review._nodes
    for segment_id in nodes.segmentation.GetSegmentation().GetSegmentIDs():
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment_id, nodes.ct)
        expected = wanted[ranks == rank] == AMOS.by_key[segment_id].label
        np.testing.assert_array_equal(mask[ranks == rank].astype(bool), expected)


def test_the_model_and_the_ct_are_known_for_a_training_set(opened, small_bundle):
    from dcaseg.models.metadata_reader import read_metadata
    from DCASegmentationLib.scene.ct_export import compute_ct_checksum
    from DCASegmentationLib.scene.review_record import read_origin
    from DCASegmentationLib.scene.segmentation import list_organ_segments

    nodes = opened.reviewPanel._nodes
    origin = read_origin(nodes.segmentation)
    metadata = read_metadata(small_bundle)
    assert (origin.model, origin.sha256, origin.vocabulary) == (metadata.name, metadata.weights.sha256, "AMOS")
    assert origin.ct_checksum == compute_ct_checksum(nodes.ct)
    assert len(list_organ_segments(nodes.segmentation)) == nodes.segmentation.GetSegmentation().GetNumberOfSegments()


def test_a_selected_result_is_not_replaced_by_an_added_scene(opened, result, fake_slicer):
    first = opened.parameters.resultSegmentation
    assert opened.parameters.inputVolume.GetName() == "Case CT"
    read_scene(result / "scene.mrb", fake_slicer)
    assert opened.parameters.resultSegmentation is first
