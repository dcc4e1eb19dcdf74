"""The scene that ``dca segment --review`` writes, opened with the module: its Review section is filled."""

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
    """The folder of a run by the command line."""
    from dcaseg.cli import main

    folder = tmp_path_factory.mktemp("segment") / "result"
    # In a process of its own the command finds an empty scene. Here the module's parameter node, a singleton that
    # outlives Clear, may be left of other tests, without its values.
    for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
        slicer.mrmlScene.RemoveNode(node)
    ct = coarse_phantom / "ct.nii.gz"
    arguments = ("segment", ct, "-o", folder, "--bundle", small_bundle, "--review", "--device", "cpu")
    assert main([str(each) for each in arguments]) == 0
    slicer.mrmlScene.Clear(0)
    return folder


@pytest.fixture
def opened(result, module_panel, fake_slicer) -> Any:
    """The module's panel, with the scene opened while it is seen."""
    read_scene(result / "scene.mrb", fake_slicer)
    return module_panel


def test_the_places_of_the_file_are_listed_and_can_be_gone_to(opened, result):
    places = json.loads((result / "review.json").read_text())["places"]
    review = opened.reviewPanel
    assert len(places) > 3
    table = review.ui.findingsTable
    # Below the organ stands why in a few words.
    findings = [table.item(row, 0).text().split("\n") for row in range(table.rowCount)]
    assert [organ for organ, _ in findings] == [place["name"] for place in places]
    reasons = {(place["reasons"][0]["kind"], why) for place, (_, why) in zip(places, findings, strict=True)}
    assert ("volume", "unusual volume") in reasons
    assert len(reasons) == len(dict(reasons)) and all(why for _, why in reasons)
    assert review.ui.checkedBar.text == f"0 of {len(places)} checked"
    review.goToNext()
    # The organ that the sentence begins with is the title.
    assert places[0]["reasons"][0]["text"].split(": ", 1)[1] in review.ui.findingLabel.text
    assert not review.ui.reviewMessageLabel.visible, "the place can be outlined"


def test_a_suggestion_is_taken_as_in_a_run_of_the_module(opened, result):
    places = json.loads((result / "review.json").read_text())["places"]
    row = next(row for row, place in enumerate(places) if place["alternative"] is not None)
    rank = places[row]["rank"]
    review = opened.reviewPanel
    review.goTo(row)
    review.ui.suggestionButton.click()
    files = (result / f"review_{name}.nrrd" for name in ("places", "alternative"))
    place, wanted = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files)
    nodes = review._nodes
    for segment_id in nodes.segmentation.GetSegmentation().GetSegmentIDs():
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment_id, nodes.ct)
        expected = wanted[place == rank] == AMOS.by_key[segment_id].label
        np.testing.assert_array_equal(mask[place == rank].astype(bool), expected)


def test_the_model_and_the_ct_are_known_for_a_training_set(opened, small_bundle):
    from dcaseg.models.metadata_reader import read_metadata
    from DCASegmentationLib.scene.ct_export import ct_checksum
    from DCASegmentationLib.scene.review_record import read_origin
    from DCASegmentationLib.scene.segmentation import own_organs

    nodes = opened.reviewPanel._nodes
    origin = read_origin(nodes.segmentation)
    metadata = read_metadata(small_bundle)
    assert (origin.model, origin.sha256, origin.vocabulary) == (metadata.name, metadata.weights.sha256, "AMOS")
    assert origin.ct_checksum == ct_checksum(nodes.ct)
    assert len(own_organs(nodes.segmentation)) == nodes.segmentation.GetSegmentation().GetNumberOfSegments()


def test_a_choice_that_was_made_is_not_replaced_by_a_scene_that_is_added(opened, result, fake_slicer):
    first = opened.parameters.resultSegmentation
    assert opened.parameters.inputVolume.GetName() == "Case CT"
    read_scene(result / "scene.mrb", fake_slicer)
    assert opened.parameters.resultSegmentation is first
