"""The Segment section, operated as a user does, with a real scene, the real worker, and a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model", "warm_worker")]
slicer = pytest.importorskip("slicer")

from dcaseg.errors import UserError
from module_driving import (
    add_ct,
    apply,
    message,
    node_ids,
    read_scene,
    segmentations,
    temporary_files,
    wait_for_end,
)
from review_case import reviewed_case


@pytest.fixture
def ct(fake_slicer) -> Any:
    return add_ct("CT")


@pytest.fixture
def panel(ct, module_panel) -> Any:
    """The module's panel, opened with a CT in the scene."""
    return module_panel


def test_one_click_segments_the_open_ct(panel, ct, fake_slicer):
    assert panel.segmentPanel.ui.inputVolumeSelector.currentNode() is ct
    apply(panel)
    assert panel.segmentPanel.ui.applyButton.text == "Cancel"
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    assert segmentation.GetName() == "CT organs"
    assert segmentation.GetSegmentation().GetNumberOfSegments() > 0
    assert "organs were segmented" in message(panel)
    assert panel.segmentPanel.ui.applyButton.text == "Apply"
    assert not panel.ui.resultSection.collapsed
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1 + 2, "the maps are not volumes yet"
    assert [path.name.startswith("DCASegmentation-maps-") for path in temporary_files()] == [True]


def test_maps_are_prepared_before_one_is_chosen_and_are_empty_outside_the_body(panel, ct, fake_slicer):
    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.maps import compute_body_mask, load_map_volume

    apply(panel)
    wait_for_end(panel, fake_slicer)
    (folder,) = temporary_files()
    fake_slicer.wait_for(lambda: list(folder.glob("*-body.npy")), 20)
    (prepared,) = folder.glob("*-body.npy")
    node = load_map_volume(read_case_nodes(panel.parameters.resultSegmentation), "entropy")
    assert list(folder.glob("*-body.npy")) == [prepared], "choosing a map computes no other mask"
    body = ~np.load(prepared)
    assert np.array_equal(body, compute_body_mask(ct, node)) and 0.3 < body.mean() < 0.95
    values = slicer.util.arrayFromVolume(node)
    assert not values[~body].any() and values[body].any()


def test_the_segmentation_is_put_under_the_study_of_its_ct(panel, ct, fake_slicer):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient")
    study = hierarchy.CreateStudyItem(patient, "Study")
    item = hierarchy.GetItemByDataNode(ct) or hierarchy.CreateItem(study, ct)
    hierarchy.SetItemParent(item, study)
    apply(panel)
    wait_for_end(panel, fake_slicer)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentations()[0])) == study


def test_cancel_stops_the_run_and_leaves_the_scene_unchanged(panel, fake_slicer):
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    apply(panel)
    panel.segmentPanel.ui.applyButton.click()
    wait_for_end(panel, fake_slicer)
    assert "Canceled" in message(panel)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert temporary_files() == []
    apply(panel)
    wait_for_end(panel, fake_slicer)
    assert len(segmentations()) == 1


def test_a_ct_deleted_during_the_run_gives_no_result(panel, ct, fake_slicer):
    apply(panel)
    slicer.mrmlScene.RemoveNode(ct)
    wait_for_end(panel, fake_slicer)
    assert "The CT was removed" in message(panel)
    assert segmentations() == [] and temporary_files() == []


def test_a_scene_closed_during_the_run_gives_no_result(panel, fake_slicer):
    apply(panel)
    slicer.mrmlScene.Clear(0)
    wait_for_end(panel, fake_slicer)
    assert "The scene was closed" in message(panel)
    assert segmentations() == [] and temporary_files() == []
    assert not panel.segmentPanel.ui.applyButton.enabled


def test_a_scene_opened_during_the_run_is_shown(panel, fake_slicer, tmp_path):
    case = reviewed_case()
    panel.parameters.resultSegmentation = case.segmentation
    slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    panel.parameters.inputVolume = add_ct("CT")
    apply(panel)
    slicer.mrmlScene.Clear(0)
    read_scene(tmp_path / "scene.mrb", fake_slicer)
    wait_for_end(panel, fake_slicer)
    fake_slicer.process_events(0.1)
    assert "The scene was closed" in message(panel)
    assert panel.reviewPanel.ui.findingsTable.rowCount == 3 and panel.resultPanel.ui.segmentsTable.rowCount == 4


@pytest.mark.parametrize("is_switched", [False, True])
def test_what_is_deleted_during_a_canceled_run_is_shown_no_longer(panel, fake_slicer, is_switched):
    case, other = reviewed_case(), reviewed_case()
    panel.parameters.resultSegmentation = case.segmentation
    fake_slicer.process_events()
    apply(panel)
    if is_switched:
        panel.parameters.resultSegmentation = other.segmentation
        assert panel.reviewPanel._segmentation is case.segmentation, "a run does not switch between results"
    else:
        slicer.mrmlScene.RemoveNode(case.segmentation)
        assert panel.reviewPanel._segmentation is panel.resultPanel._segmentation is None
    panel.segmentPanel.ui.applyButton.click()
    wait_for_end(panel, fake_slicer)
    fake_slicer.process_events(0.1)
    shown = other.segmentation if is_switched else None
    assert panel.reviewPanel._segmentation is panel.resultPanel._segmentation is shown


@pytest.mark.slow
def test_two_cts_get_a_segmentation_each(panel, fake_slicer):
    apply(panel)
    wait_for_end(panel, fake_slicer)
    panel.parameters.inputVolume = add_ct("Second")
    apply(panel)
    wait_for_end(panel, fake_slicer)
    assert [node.GetName() for node in segmentations()] == ["CT organs", "Second organs"]


def test_only_own_segments_of_an_existing_segmentation_are_replaced_after_a_question(panel, fake_slicer):
    apply(panel)
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    segmentation.GetSegmentation().AddEmptySegment("mine", "My own")
    volumes = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    panel.parameters.outputSegmentation = segmentation
    fake_slicer.dialogs.answer(False, True)
    apply(panel)
    assert not panel.logic.isRunning
    apply(panel)
    wait_for_end(panel, fake_slicer)
    segments = segmentation.GetSegmentation().GetSegmentIDs()
    assert "mine" in segments and len(segments) > 1 and len(set(segments)) == len(segments)
    assert segmentations() == [segmentation]
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == volumes


def test_only_the_region_of_interest_is_segmented(panel, ct, fake_slicer):
    bounds = [0.0] * 6
    ct.GetRASBounds(bounds)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    roi.SetCenter(*[(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)])
    roi.SetSize(100.0, 100.0, 120.0)
    panel.parameters.regionOfInterest = roi
    apply(panel)
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    found = [0.0] * 6
    segmentation.GetSegmentation().GetSegment(segmentation.GetSegmentation().GetNthSegmentID(0)).GetBounds(found)
    assert found[1] - found[0] < bounds[1] - bounds[0]


def voxels(segmentation, ct):
    """The voxels of each segment."""
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    return {each: slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, each, ct).copy() for each in ids}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


@pytest.mark.slow
def test_a_run_for_one_organ_asks_for_it_leaves_the_others_and_can_be_undone(panel, ct, fake_slicer):
    apply(panel)
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    content = segmentation.GetSegmentation()
    before, organ = voxels(segmentation, ct), content.GetNthSegmentID(0)
    assert len(before) > 1
    # An edit that the status does not show, so that it is replaced.
    panel.parameters.keepCorrected = False
    for segment_id in list(before)[:2]:
        mask = before[segment_id] * (np.arange(before[segment_id].shape[0]) % 2 == 0)[:, None, None]
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, ct)
    edited = voxels(segmentation, ct)
    panel.parameters.organs, panel.parameters.outputSegmentation = organ, segmentation
    fake_slicer.dialogs.answer(True)
    apply(panel)
    wait_for_end(panel, fake_slicer)
    name = content.GetSegment(organ).GetName()
    question = fake_slicer.dialogs.texts[-1]
    assert question.startswith(f"Replace these organs in CT organs: {name}? All other organs stay as they are.")
    assert f"Corrections of these organs will be lost: {name}." in question
    assert_same(voxels(segmentation, ct), {**edited, organ: before[organ]})
    assert "1 organ was segmented" in message(panel)
    fake_slicer.process_events()
    panel.correctPanel.ui.segmentEditor.undo()
    assert_same(voxels(segmentation, ct), edited)


@pytest.mark.slow
def test_a_run_in_a_region_asks_for_the_organs_in_it_and_changes_nothing_outside(panel, ct, fake_slicer):
    from DCASegmentationLib.scene.ct_export import convert_roi_to_region
    from DCASegmentationLib.scene.volumes import get_ijk_to_world

    apply(panel)
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    before = voxels(segmentation, ct)
    bounds = [0.0] * 6
    ct.GetRASBounds(bounds)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    roi.SetCenter(*[(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)])
    roi.SetSize(100.0, 100.0, 120.0)
    region = convert_roi_to_region(roi, get_ijk_to_world(ct), slicer.util.arrayFromVolume(ct).shape)
    panel.parameters.regionOfInterest, panel.parameters.outputSegmentation = roi, segmentation
    fake_slicer.dialogs.answer(True)
    apply(panel)
    wait_for_end(panel, fake_slicer)
    question = fake_slicer.dialogs.texts[-1]
    assert question.startswith("Replace these organs inside the region: ")
    assert "Nothing changes outside the region." in question
    content = segmentation.GetSegmentation()
    for segment_id, array in before.items():
        assert (content.GetSegment(segment_id).GetName() in question) == bool(array[region.slices].any())
    after = voxels(segmentation, ct)
    outside = np.ones(slicer.util.arrayFromVolume(ct).shape, bool)
    outside[region.slices] = False
    for segment_id in before.keys() | after.keys():
        old, new = (found.get(segment_id, np.zeros(outside.shape))[outside] for found in (before, after))
        np.testing.assert_array_equal(new, old, err_msg=segment_id)
    fake_slicer.process_events()
    panel.correctPanel.ui.segmentEditor.undo()
    assert_same(voxels(segmentation, ct), before)


@pytest.mark.slow
def test_a_result_is_shown_on_its_ct_unless_the_user_went_on_to_another_one(panel, ct, fake_slicer):
    layouts = fake_slicer.app.layoutManager()
    views = [layouts.sliceWidget(name).mrmlSliceCompositeNode() for name in layouts.sliceViewNames()]

    def shown():
        return {slicer.mrmlScene.GetNodeByID(view.GetBackgroundVolumeID() or "") for view in views}

    def show(node):
        for view in views:
            view.SetBackgroundVolumeID(node.GetID())

    other = add_ct("Another CT")
    show(other)
    apply(panel)
    wait_for_end(panel, fake_slicer)
    fake_slicer.process_events()
    assert shown() == {ct}
    apply(panel)
    show(other)
    panel.parameters.inputVolume = other
    wait_for_end(panel, fake_slicer)
    fake_slicer.process_events()
    assert shown() == {other}


def test_every_choice_survives_saving_and_loading_the_scene(panel, fake_slicer, tmp_path):
    from DCASegmentationLib.parameters import Device

    apply(panel)
    wait_for_end(panel, fake_slicer)
    parameters = panel.parameters
    parameters.device = Device.CPU
    parameters.outputSegmentation = parameters.resultSegmentation
    parameters.regionOfInterest = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    chosen = {
        "modelName": "random-weights", "expertLevel": 2, "expertMap": "head", "mapOpacity": 0.25, "mapThreshold": 0.75,
        "colorMap": "Cividis", "showLegend": False,
    }  # fmt: skip
    for name, value in chosen.items():
        setattr(parameters, name, value)
    path = tmp_path / "scene.mrb"
    slicer.mrmlScene.WriteToMRB(str(path))
    slicer.mrmlScene.Clear(0)
    assert panel.parameters.resultSegmentation is None
    assert panel.parameters.expertMap == "none"
    read_scene(path, fake_slicer)
    parameters = panel.parameters
    assert parameters.device is Device.CPU
    assert parameters.inputVolume.GetName() == "CT"
    assert parameters.resultSegmentation.GetName() == parameters.outputSegmentation.GetName() == "CT organs"
    assert parameters.regionOfInterest.GetName() == "Region"
    assert {name: getattr(parameters, name) for name in chosen} == chosen
    assert panel.expertsPanel.ui.mapSelector.currentData == "head"
    assert panel.expertsPanel.ui.mapOpacitySlider.value == pytest.approx(0.25)
    assert not panel.ui.resultSection.collapsed


def test_segmenting_a_ct_twice_gives_two_segmentations_and_shows_the_second(panel, fake_slicer):
    for _ in range(2):
        apply(panel)
        wait_for_end(panel, fake_slicer)
    first, second = segmentations()
    assert first.GetName() == "CT organs" and second.GetName().startswith("CT organs_")
    assert panel.parameters.resultSegmentation is second


def test_the_segmentation_follows_a_ct_under_a_linear_transform(panel, ct, fake_slicer):
    import vtk

    matrix = vtk.vtkTransform()
    matrix.RotateZ(20.0)
    matrix.Translate(5.0, -3.0, 8.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Registration")
    transform.SetMatrixTransformToParent(matrix.GetMatrix())
    ct.SetAndObserveTransformNodeID(transform.GetID())
    apply(panel)
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    assert segmentation.GetParentTransformNode() is transform


@pytest.mark.slow
@pytest.mark.parametrize("is_hardened", [False, True])
def test_maps_and_findings_follow_a_ct_that_is_moved_during_the_run(panel, ct, fake_slicer, is_hardened):
    import vtk

    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.maps import load_map_volume
    from DCASegmentationLib.scene.review_record import read_review
    from DCASegmentationLib.scene.volumes import get_ijk_to_ras

    def outcome():
        """Where the uncertainty map and the findings (RAS) are in the CT's own space."""
        wait_for_end(panel, fake_slicer)
        nodes = read_case_nodes(panel.parameters.resultSegmentation)
        assert nodes.segmentation.GetTransformNodeID() == ct.GetTransformNodeID()
        grid = np.array(slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(load_map_volume(nodes, "entropy"))))
        findings = [[*each.position_mm, 1.0] for each in read_review(nodes.segmentation).findings]
        return grid, np.array(findings) * [-1.0, -1.0, 1.0, 1.0]

    apply(panel)
    grid, findings = outcome()
    assert len(findings) > 0
    apply(panel)
    matrix = vtk.vtkTransform()
    matrix.RotateZ(20.0)
    matrix.Translate(20.0, -3.0, 8.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Registration")
    transform.SetMatrixTransformToParent(matrix.GetMatrix())
    ct.SetAndObserveTransformNodeID(transform.GetID())
    moved = np.eye(4)
    if is_hardened:
        ct.HardenTransform()
        moved = slicer.util.arrayFromVTKMatrix(matrix.GetMatrix())
    new_grid, new_findings = outcome()
    np.testing.assert_allclose(new_grid, moved @ grid, atol=1e-9)
    np.testing.assert_allclose(new_findings, findings @ moved.T, atol=1e-6)


@pytest.mark.parametrize("part", ["keep_for_review", "take_maps"])
def test_an_error_after_the_organs_were_added_leaves_no_half_result(panel, fake_slicer, monkeypatch, part):
    from dcaseg.errors import OutputError
    from DCASegmentationLib import logic
    from DCASegmentationLib.scene import result_import

    def fail(*arguments, **keywords):
        if part == "take_maps":
            raise OutputError("The maps of the result could not be saved.", "Free some space.")
        raise ValueError("made up")

    # The review itself, of which the last step fails.
    monkeypatch.setattr(*((result_import, "place_in_folder") if part == "keep_for_review" else (logic, part)), fail)
    nodes = node_ids()
    apply(panel)
    wait_for_end(panel, fake_slicer)
    fake_slicer.process_events(0.1)
    if part == "take_maps":
        assert "organs were segmented" in message(panel) and "maps of the result could not be saved" in message(panel)
        assert panel.parameters.resultSegmentation is segmentations()[0]
    else:
        assert "could not be shown (ValueError: made up)" in message(panel)
        assert segmentations() == []
        assert [each for each in node_ids() - nodes if "SubjectHierarchy" not in each] == []


@pytest.mark.slow
def test_a_target_that_cannot_take_the_organs_any_more_is_left_alone(panel, ct, fake_slicer):
    apply(panel)
    wait_for_end(panel, fake_slicer)
    (first,) = segmentations()
    before = voxels(first, ct)
    panel.parameters.outputSegmentation = first
    fake_slicer.dialogs.answer(True)
    apply(panel)
    first.CreateClosedSurfaceRepresentation()
    first.GetSegmentation().SetSourceRepresentationName("Closed surface")
    wait_for_end(panel, fake_slicer)
    first, second = segmentations()
    assert panel.parameters.resultSegmentation is second
    assert "The organs are in a new segmentation: CT organs is stored as closed surface" in message(panel)
    assert_same(voxels(second, ct), before)


def test_a_ct_whose_axes_are_left_handed_is_segmented(panel, ct, fake_slicer):
    directions = [[0.0] * 3 for _ in range(3)]
    ct.GetIJKToRASDirections(directions)
    for row in directions:
        row[0] = -row[0]
    ct.SetIJKToRASDirections(directions)
    apply(panel)
    wait_for_end(panel, fake_slicer)
    (segmentation,) = segmentations()
    found = segmentation.GetSegmentation()
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, found.GetNthSegmentID(0), ct)
    assert voxels.shape == slicer.util.arrayFromVolume(ct).shape and voxels.any()


def test_a_script_gets_the_nodes_without_any_widget(ct, module, fake_slicer):
    from DCASegmentationLib.scene.maps import list_attention_levels, load_map_volume

    logic = module.DCASegmentationLogic()
    progress: list[float] = []
    try:
        nodes = logic.segment(ct, device="cpu", onProgress=lambda fraction, text: progress.append(fraction))
    finally:
        logic.stop()
    assert nodes.segmentation in segmentations() and list_attention_levels(nodes) == [1, 2, 3, 4]
    assert load_map_volume(nodes, "entropy").GetImageData() is not None
    assert progress == sorted(progress) and progress[0] == 0.0


def test_a_script_gets_an_exception_for_what_cannot_be_segmented(module, fake_slicer):
    from dcaseg.errors import UserError

    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    with pytest.raises(UserError, match="Labels is a label map"):
        module.DCASegmentationLogic().segment(labels)


@pytest.mark.parametrize("style", ["light", "dark"])
def test_the_initial_panel_is_uncluttered_and_fits_into_400_pixels(panel, screenshot, style):
    for section in ("setupSection", "expertsSection", "resultSection", "correctSection"):
        assert getattr(panel.ui, section).collapsed
    assert panel.widget.window().minimumSizeHint().width() <= 400
    assert screenshot(panel.widget.window(), f"first-look-{style}", style).exists()
    panel.ui.setupSection.collapsed = False
    for group in (panel.segmentPanel.ui.modelCardGroup, panel.segmentPanel.ui.advancedGroup):
        group.collapsed = False
    panel.segmentPanel.showError(UserError("The CT could not be written to the disk.", "Free some space."), "Details")
    assert panel.widget.window().minimumSizeHint().width() <= 400
    assert screenshot(panel.widget.window(), f"opened-{style}", style).exists()
