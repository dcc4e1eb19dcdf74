"""The Review section, operated as a user does, on a case as after a run."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import vtk

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("PySide6", reason="needs PySide6")
pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model")]

from dcaseg.organs import AMOS
from module_driving import temporary_files
from review_case import FINDINGS, LIVER, alternative_array, label_array, labels_of, paint, reviewed_case


@pytest.fixture
def panel(module_panel) -> Any:
    return module_panel


@pytest.fixture
def case(panel, fake_slicer) -> Any:
    """A case with three findings, shown in the panel."""
    nodes = reviewed_case()
    show(panel, nodes)
    fake_slicer.process_events()
    return nodes


@pytest.fixture
def review(panel) -> Any:
    return panel.reviewPanel


def show(panel, nodes):
    panel.parameters.inputVolume = nodes.ct
    panel.parameters.resultSegmentation = nodes.segmentation
    panel.ui.reviewSection.collapsed = False
    let_steps_run()


def let_steps_run():
    for _turn in range(30):
        slicer.app.processEvents()


def rows(table):
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def statuses(review):
    return [row[2] for row in rows(review.ui.findingsTable)]


def progress(review):
    return review.ui.checkedBar.text


def outline():
    """The outline of a finding that is visible in the views; None if there is none."""
    shown = [node for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if node.GetDisplayVisibility()]
    assert len(shown) <= 1
    return shown[0] if shown else None


def message(review):
    return review.ui.reviewMessageLabel.text


def tick(review, key, checked=True):
    import qt

    table = review.ui.changesTable
    for row in range(table.rowCount):
        if table.item(row, 0).data(qt.Qt.UserRole) == key:
            table.item(row, 0).setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)
            return
    raise AssertionError(f"{key} is not listed")


def test_without_a_result_the_section_says_so(panel, review):
    panel.ui.reviewSection.collapsed = False
    assert review.ui.reviewHintLabel.visible and not review.ui.findingsTable.visible
    assert not review.ui.trainingSetButton.visible
    review.goToNext()


def test_findings_are_listed_in_order_with_reason_volume_and_status(panel, review, case):
    assert rows(review.ui.findingsTable) == [
        ["Liver\nexperts disagree", "34.6", "To check"],
        ["Spleen\nexperts disagree", "15.4", "To check"],
        ["Right kidney\nexperts disagree", "17.3", "To check"],
    ]
    assert progress(review) == "0 of 3 checked"
    assert not review.ui.acceptButton.enabled, "no finding is selected yet"


def test_keys_go_from_finding_to_finding_in_all_views(review, case):
    down, up = review._shortcuts[:2]
    down.activated.emit()
    assert outline().GetName() == "1: Liver"
    assert "80 %" in review.ui.findingLabel.text and "The experts hold Stomach" in review.ui.findingLabel.text
    down.activated.emit()
    assert review.ui.findingsTable.currentRow() == 1
    red = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    x, y, z = review._finding.position_mm
    assert [red.GetSliceToRAS().GetElement(row, 3) for row in range(3)] == pytest.approx([-x, -y, z])
    up.activated.emit()
    up.activated.emit()
    assert review.ui.findingsTable.currentRow() == 0 and not review.ui.previousButton.enabled


def test_a_click_on_a_row_goes_to_the_finding(review, case):
    review.ui.findingsTable.cellClicked.emit(2, 0)
    assert outline().GetName() == "3: Right kidney"
    assert not review.ui.nextButton.enabled
    assert not review.ui.suggestionButton.enabled, "this finding has no alternative"


def test_an_arrow_key_in_the_table_goes_to_the_finding_that_it_highlights(review, case):
    import qt
    from PySide6.QtTest import QTest

    review.ui.findingsTable.cellClicked.emit(0, 0)
    QTest.keyClick(review.ui.findingsTable, qt.Qt.Key_Down)
    assert outline().GetName() == "2: Spleen"
    review.ui.acceptButton.click()
    assert statuses(review) == ["To check", "Accepted", "To check"]


def test_one_click_accepts_the_alternative_and_another_undoes_it(review, case):
    review.goToNext()
    review.ui.suggestionButton.click()
    assert statuses(review) == ["Accepted", "To check", "To check"] and progress(review) == "1 of 3 checked"
    assert (labels_of(case) != label_array()).any()
    assert not review.ui.acceptButton.enabled
    review.ui.suggestionButton.click()
    assert statuses(review)[0] == "To check" and not review.ui.suggestionButton.checked
    np.testing.assert_array_equal(labels_of(case), label_array())


def test_the_segment_editors_undo_also_undoes_the_alternative(panel, review, case, fake_slicer):
    review.goToNext()
    review.ui.suggestionButton.click()
    panel.correctPanel.ui.segmentEditor.undo()
    fake_slicer.process_events(0.7)
    np.testing.assert_array_equal(labels_of(case), label_array())
    assert statuses(review)[0] == "To check"


def test_a_finding_is_accepted_as_it_is_or_flagged(review, case):
    review.goToNext()
    review.ui.acceptButton.click()
    assert statuses(review)[0] == "Accepted"
    review.ui.flagButton.click()
    assert statuses(review)[0] == "Flagged" and not review.ui.acceptButton.checked
    review.ui.flagButton.click()
    assert statuses(review)[0] == "To check"


def test_painting_in_a_finding_that_the_user_went_to_marks_it_corrected(review, case, fake_slicer):
    review.goTo(2)
    paint(case, "right_kidney", (slice(4, 5), slice(22, 28), slice(8, 14)), 0)
    fake_slicer.process_events(0.7)
    assert statuses(review)[2] == "Corrected" and progress(review) == "1 of 3 checked"


def test_a_changed_finding_counts_only_after_the_user_went_to_it(review, case, fake_slicer, tmp_path):
    paint(case, "right_kidney", (slice(4, 5), slice(22, 28), slice(8, 14)), 0)
    fake_slicer.process_events(0.7)
    item = review.ui.findingsTable.item(2, 2)
    assert item.text() == "Changed" and item.font().bold() and "click the finding" in item.toolTip()
    assert progress(review) == "0 of 3 checked"
    review.ui.trainingSetButton.click()
    assert "No organ of this case has been fully reviewed" in message(review)
    review.goTo(2)
    assert item.text() == "Corrected" and not item.font().bold() and "click" not in item.toolTip()
    assert progress(review) == "1 of 3 checked" and "Right kidney: 1 of 1 checked" in review.ui.findingLabel.text


def test_the_report_lists_a_changed_finding_that_nobody_looked_at_as_not_checked(review, case, fake_slicer):
    from DCASegmentationLib.scene.case_report import create_case_report

    paint(case, "right_kidney", (slice(4, 5), slice(22, 28), slice(8, 14)), 0)
    fake_slicer.process_events(0.7)
    assert [finding.outcome for finding in create_case_report(case, "").findings] == ["not checked"] * 3
    review.goTo(2)
    assert create_case_report(case, "").findings[2].outcome == "corrected by hand"


def test_the_shortcuts_are_none_of_slicers_own(review):
    import qt

    keys = [shortcut.key for shortcut in review._shortcuts]
    assert keys == [qt.QKeySequence(text) for text in ("Ctrl+Down", "Ctrl+Up", "Ctrl+Shift+Return", "Ctrl+Shift+F")]
    # qMRMLMarkupsToolBar and qMRMLSequenceBrowserPlayWidget, for the whole window.
    owned = [f"Ctrl+Shift+{key}" for key in ("A", "T", "Space", "Left", "Right", "Down")]
    assert not any(key == qt.QKeySequence(text) for key in keys for text in owned)
    assert "(Ctrl+Shift+Return)" in review.ui.acceptButton.toolTip


def test_the_surfaces_follow_two_quick_decisions(review, case, fake_slicer):
    def points():
        found = {}
        for segment_id in case.segmentation.GetSegmentation().GetSegmentIDs():
            surface = vtk.vtkPolyData()
            case.segmentation.GetClosedSurfaceRepresentation(segment_id, surface)
            found[segment_id] = surface.GetNumberOfPoints()
        return found

    case.segmentation.CreateClosedSurfaceRepresentation()
    for row in (0, 1):
        review.goTo(row)
        review.ui.suggestionButton.click()
    fake_slicer.process_events(1.0)
    shown = points()
    case.segmentation.RemoveClosedSurfaceRepresentation()
    case.segmentation.CreateClosedSurfaceRepresentation()
    assert shown == points() and shown["stomach"] > 0


def put_under_registration(*nodes):
    matrix = vtk.vtkTransform()
    matrix.Translate(20.0, 0.0, 16.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Registration")
    transform.SetMatrixTransformToParent(matrix.GetMatrix())
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform.GetID())


@pytest.mark.parametrize("is_hardened", [False, True])
def test_the_review_continues_after_a_registration(panel, review, case, fake_slicer, is_hardened):
    review.goTo(2)
    review.ui.acceptButton.click()
    before = outline().GetPolyData().GetBounds()
    put_under_registration(case.ct, case.segmentation)
    if is_hardened:
        case.ct.HardenTransform()
        case.segmentation.HardenTransform()
        assert outline().GetPolyData().GetBounds()[0] == pytest.approx(before[0] + 20.0)
    assert outline().GetTransformNodeID() == case.ct.GetTransformNodeID()
    fake_slicer.process_events(0.7)
    assert statuses(review) == ["To check", "To check", "Accepted"]
    review.goTo(0)
    review.ui.suggestionButton.click()
    fake_slicer.process_events(0.7)
    expected = label_array()
    expected[FINDINGS[1]] = alternative_array()[FINDINGS[1]]
    np.testing.assert_array_equal(labels_of(case), expected)
    assert statuses(review) == ["Accepted", "To check", "Accepted"] and message(review) == ""


def test_a_result_moved_while_the_module_was_not_loaded_follows_when_it_is(fake_slicer, module):
    nodes = reviewed_case()
    put_under_registration(nodes.ct, nodes.segmentation)
    widget = fake_slicer.make_widget(module)
    fake_slicer.process_events()
    assert nodes.automatic.GetTransformNodeID() == nodes.segmentation.GetTransformNodeID() is not None
    widget.cleanup()


def test_without_the_automatic_result_where_it_should_be_the_review_says_so(review, case, fake_slicer):
    put_under_registration(case.automatic)
    # Otherwise it would be put back.
    case.segmentation.RemoveAttribute("DCASegmentation.grids")
    paint(case, "right_kidney", (slice(4, 5), slice(22, 28), slice(8, 14)), 0)
    fake_slicer.process_events(0.7)
    assert "was moved away from the automatic result" in message(review)
    review.goTo(0)
    review.ui.suggestionButton.click()
    assert "segment the CT again" in message(review) and statuses(review) == ["To check"] * 3


def test_a_segmentation_stored_as_surfaces_keeps_its_statuses_and_says_why(panel, review, case, fake_slicer):
    content = case.segmentation.GetSegmentation()
    case.segmentation.CreateClosedSurfaceRepresentation()
    content.SetSourceRepresentationName("Closed surface")
    fake_slicer.process_events(0.7)
    assert "stored as closed surface, not as voxels" in message(review)
    review.goTo(0)
    review.ui.suggestionButton.click()
    panel.clickPanel.fix("liver")
    fake_slicer.process_events(0.1)
    assert "not as voxels" in panel.clickPanel.ui.clicksMessageLabel.text
    review.ui.trainingSetSelector.currentIndex = 0
    assert statuses(review) == ["To check"] * 3 and fake_slicer.dialogs.shown == []
    panel.parameters.resultSegmentation = None
    panel.parameters.resultSegmentation = case.segmentation
    let_steps_run()
    assert "not as voxels" in message(review)
    content.SetSourceRepresentationName("Binary labelmap")
    fake_slicer.process_events(0.7)
    assert message(review) == ""


def test_a_scene_saved_without_the_review_by_slicer_5_10_says_so(panel, review, fake_slicer):
    nodes = reviewed_case()
    for node in nodes.list_label_maps():
        node.SetAndObserveImageData(None)
    show(panel, nodes)
    assert "saves a review only as .mrb" in message(review)
    assert not review.ui.trainingSetButton.visible and review.ui.keepCorrectedCheckBox.visible
    paint(nodes, "liver", (slice(18, 22), slice(6, 12), slice(4, 10)), 0)
    fake_slicer.process_events(0.7)
    review.goTo(0)
    review.ui.suggestionButton.click()
    assert "Segment the CT again" in message(review)
    review.ui.changesButton.checked = True


@pytest.mark.parametrize("limit", ["finding", "uncertain"])
def test_edit_here_opens_the_segment_editor_limited_by_its_own_mask(panel, review, case, limit):
    review.goTo(2)
    review.ui.limitSelector.currentIndex = review.ui.limitSelector.findData(limit)
    review.ui.editButton.click()
    let_steps_run()
    editor = panel.correctPanel.ui.segmentEditor
    assert not panel.ui.correctSection.collapsed
    assert editor.currentSegmentID() == "right_kidney" and editor.activeEffect() == "Paint"
    assert editor.sourceVolumeNode().GetName() == "Editable area"
    assert editor.mrmlSegmentEditorNode().GetSourceVolumeIntensityMask()
    assert panel.correctPanel.ui.limitLabel.visible
    panel.correctPanel.ui.editEverywhereButton.click()
    assert editor.sourceVolumeNode() is case.ct and editor.activeEffect() is None
    assert not editor.mrmlSegmentEditorNode().GetSourceVolumeIntensityMask()


def test_going_to_another_finding_ends_limited_editing(panel, review, case):
    review.goTo(2)
    review.ui.editButton.click()
    let_steps_run()
    review.goToPrevious()
    editor = panel.correctPanel.ui.segmentEditor
    assert editor.activeEffect() is None and editor.sourceVolumeNode() is case.ct


def test_editing_a_missing_organ_creates_its_segment(panel, review, case):
    case.segmentation.GetSegmentation().RemoveSegment("right_kidney")
    review.goTo(2)
    review.ui.limitSelector.currentIndex = review.ui.limitSelector.findData("everywhere")
    review.ui.editButton.click()
    let_steps_run()
    assert "right_kidney" in case.segmentation.GetSegmentation().GetSegmentIDs()
    assert panel.correctPanel.ui.segmentEditor.currentSegmentID() == "right_kidney"


def test_leaving_the_section_or_the_module_hides_the_outline(panel, review, case):
    review.goToNext()
    panel.ui.reviewSection.collapsed = True
    assert outline() is None
    panel.ui.reviewSection.collapsed = False
    assert outline() is not None
    panel.exit()
    assert outline() is None
    panel.enter()
    assert outline() is not None


def test_the_table_of_changes_is_copied_and_saved(review, case, fake_slicer, tmp_path):
    review.goToNext()
    review.ui.suggestionButton.click()
    review.ui.changesButton.checked = True
    table = {row[0]: row[1:] for row in rows(review.ui.changesTable)}
    assert len(table) == len(AMOS) and table["Spleen"] == ["0 of 1", "184.3", "1.000"]
    assert table["Liver"] == ["1 of 1", "610.6", "0.972"]
    assert table["Bladder"] == ["\N{EN DASH}", "0.0", "\N{EN DASH}"]
    fake_slicer.dialogs.answer(str(tmp_path / "changes"))
    review.ui.saveChangesButton.click()
    review.ui.copyChangesButton.click()
    written = (tmp_path / "changes.csv").read_text()
    assert slicer.app.clipboard().text() == written.replace(",", "\t")
    (liver,) = [row for row in csv.DictReader(io.StringIO(written)) if row["organ"] == "liver"]
    assert float(liver["removed_ml"]) == pytest.approx(34.56) and liver["reviewed"] == "1"


def test_everything_is_restored_after_saving_and_loading_the_scene(panel, review, case, fake_slicer, tmp_path):
    review.goToNext()
    review.ui.suggestionButton.click()
    review.goTo(2)
    review.ui.flagButton.click()
    path = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(path))
    slicer.mrmlScene.Clear(0)
    assert not review.ui.findingsTable.visible
    slicer.mrmlScene.ReadFromMRB(str(path), False)
    fake_slicer.process_events()
    assert statuses(review) == ["Accepted", "To check", "Flagged"] and progress(review) == "2 of 3 checked"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1, "the outline is not saved"
    review.goToNext()
    review.ui.suggestionButton.click()
    np.testing.assert_array_equal(labels_of(review._nodes), label_array())
    fake_slicer.log.clear()  # slicer-core cannot merge subject hierarchies


def test_deleted_nodes_are_reported_when_needed(panel, review, case, fake_slicer):
    slicer.mrmlScene.RemoveNode(case.finding_ranks)
    review.goToNext()
    assert "was deleted" in message(review)
    review.ui.suggestionButton.click()
    assert "was deleted" in message(review)
    slicer.mrmlScene.RemoveNode(case.ct)
    review.ui.trainingSetButton.click()
    assert "no longer in the scene" in message(review)
    review.ui.trainingSetSelector.currentIndex = 1
    fake_slicer.dialogs.answer("/nowhere")
    review.ui.trainingSetButton.click()
    assert "no longer in the scene" in message(review)
    slicer.mrmlScene.RemoveNode(case.segmentation)
    fake_slicer.process_events()
    assert not review.ui.findingsTable.visible


def add_to(review, fake_slicer, folder):
    fake_slicer.dialogs.answer(str(folder))
    review.ui.trainingSetButton.click()
    fake_slicer.wait_for(lambda: not review._writer.isRunning, 60)
    assert temporary_files() == []
    return message(review)


def review_the_liver(review):
    review.goTo(0)
    review.ui.suggestionButton.click()
    review.ui.changesButton.checked = True


def test_reviewed_organs_are_added_to_a_training_set_and_others_are_unannotated(review, case, fake_slicer, tmp_path):
    review_the_liver(review)
    tick(review, "gallbladder")
    for segment_id in ("liver", "spleen"):
        # As saved scenes of Fix with clicks have it.
        case.segmentation.GetSegmentation().GetSegment(segment_id).SetTag("DCASegmentation.Clicks", "2 1")
    text = add_to(review, fake_slicer, tmp_path)
    assert "Added as ct-" in text and "Gallbladder, Liver" in text and "in the folder: 1." in text
    (entry,) = json.loads((tmp_path / "dataset.json").read_text())["training"]
    assert set(entry["unannotated"]) == set(AMOS.by_label) - {LIVER, AMOS.by_key["gallbladder"].label}
    ct = sitk.ReadImage(str(tmp_path / entry["image"]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), slicer.util.arrayFromVolume(case.ct))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / entry["label"])))
    np.testing.assert_array_equal(labels == LIVER, labels_of(case) == LIVER)
    provenance = json.loads((tmp_path / entry["provenance"]).read_text())
    assert provenance["model"] == {"name": "made-up", "sha256": "ab" * 32}
    assert provenance["places"] == [{"rank": 1, "organ": "liver", "status": "suggestion accepted"}]
    assert provenance["clicks"] == [{"organ": "liver", "added": 2, "removed": 1}], "the spleen was not reviewed"


def test_segments_keep_their_organ_when_renamed(review, case, fake_slicer, tmp_path):
    review_the_liver(review)
    content = case.segmentation.GetSegmentation()
    content.GetSegment("liver").SetName("Leber")
    content.AddEmptySegment("tumor", "Tumor")
    assert "Left out because the model has no such organ: Tumor" in add_to(review, fake_slicer, tmp_path)


def nothing(review, case):
    pass


def empty(review, case):
    review_the_liver(review)
    paint(case, "liver", (slice(None),) * 3, 0)


def doubled(review, case):
    review_the_liver(review)
    case.segmentation.GetSegmentation().AddEmptySegment("second", "liver")


def overlapping(review, case):
    review_the_liver(review)
    tick(review, "spleen")
    mask = (labels_of(case) == LIVER).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, case.segmentation, "spleen", case.ct)


def other_geometry(review, case):
    review_the_liver(review)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(2, 3, 150.0)
    transform.SetMatrixTransformToParent(matrix)
    case.segmentation.SetAndObserveTransformNodeID(transform.GetID())


def changed_ct(review, case):
    review_the_liver(review)
    slicer.util.arrayFromVolume(case.ct)[3, 3, 3] += 1
    slicer.util.arrayFromVolumeModified(case.ct)


def moved_ct(review, case):
    review_the_liver(review)
    case.ct.SetSpacing(5.0, 6.0, 7.0)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (empty, "The segment Liver is empty"),
        (doubled, "Two segments represent Liver"),
        (overlapping, "overlap in"),
        (other_geometry, "on the voxel grid of the CT"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unusable_case_is_reported_and_nothing_is_written(spoil, expected, review, case, fake_slicer, tmp_path):
    spoil(review, case)
    segments = case.segmentation.GetSegmentation().GetSegmentIDs()
    text = add_to(review, fake_slicer, tmp_path)
    assert expected in text and "</b> " in text
    assert list(tmp_path.iterdir()) == []
    assert case.segmentation.GetSegmentation().GetSegmentIDs() == segments
    assert review.ui.trainingSetButton.enabled


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (nothing, "No organ of this case has been fully reviewed"),
        (changed_ct, "has changed since it was segmented"),
        (moved_ct, "has changed since it was segmented"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_folder_is_requested_if_nothing_can_be_added(spoil, expected, review, case, fake_slicer):
    spoil(review, case)
    review.ui.trainingSetButton.click()
    assert expected in message(review) and fake_slicer.dialogs.shown == []


def test_an_unlabeled_ct_is_added_once_and_replaced_by_its_corrected_case(review, case, fake_slicer, tmp_path):
    review.ui.trainingSetSelector.currentIndex = 1
    text = add_to(review, fake_slicer, tmp_path)
    assert "without labels. CTs without labels in the folder: 1." in text
    listed = json.loads((tmp_path / "dataset.json").read_text())
    assert listed["training"] == []
    (entry,) = listed["unlabelled"]
    ct = sitk.ReadImage(str(tmp_path / entry["image"]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), slicer.util.arrayFromVolume(case.ct))
    assert "without labels" in add_to(review, fake_slicer, tmp_path)
    review_the_liver(review)
    review.ui.trainingSetSelector.currentIndex = 0
    assert "in the folder: 1." in add_to(review, fake_slicer, tmp_path)
    listed = json.loads((tmp_path / "dataset.json").read_text())
    assert len(listed["training"]) == 1 and listed["unlabelled"] == []
    review.ui.trainingSetSelector.currentIndex = 1
    assert "with corrected organs" in add_to(review, fake_slicer, tmp_path)
    # The organs of the test CT are boxes, which begin abruptly.
    assert all("changes abruptly" in line for line in fake_slicer.log.lines)
    fake_slicer.log.clear()


def test_the_same_ct_is_added_twice_only_after_a_question(review, case, fake_slicer, tmp_path):
    review_the_liver(review)
    add_to(review, fake_slicer, tmp_path)
    fake_slicer.dialogs.answer(str(tmp_path), False)
    review.ui.trainingSetButton.click()
    assert not review._writer.isRunning
    fake_slicer.dialogs.answer(str(tmp_path), True)
    review.ui.trainingSetButton.click()
    fake_slicer.wait_for(lambda: not review._writer.isRunning, 60)
    assert "-2, with" in message(review) and "in the folder: 2." in message(review)


def test_two_slicers_add_to_one_folder_at_the_same_time(review, case, fake_slicer, tmp_path):
    from DCASegmentationLib.widgets.training_set import TrainingSetWriter

    review_the_liver(review)
    ends: list[Any] = []
    writers = [TrainingSetWriter(lambda case, cases, error: ends.append(error)) for _ in range(3)]
    for version, writer in enumerate(writers, start=1):
        writer.start(case, tmp_path, version)
    fake_slicer.wait_for(lambda: len(ends) == 3, 90)
    assert ends == [None, None, None]
    listed = json.loads((tmp_path / "dataset.json").read_text())
    assert len(listed["training"]) == 3


def test_a_read_only_folder_is_reported_and_the_review_continues(review, case, fake_slicer, tmp_path):
    review_the_liver(review)
    blocked = tmp_path / "a file"
    blocked.write_text("precious")
    assert "</b>" in add_to(review, fake_slicer, blocked)
    assert blocked.read_text() == "precious" and statuses(review)[0] == "Accepted"


@pytest.mark.parametrize("style", ["light", "dark"])
def test_the_section_fits_into_400_pixels(panel, review, case, screenshot, style):
    review_the_liver(review)
    review.goToNext()
    review.ui.acceptButton.click()
    review.goToNext()
    assert panel.widget.window().minimumSizeHint().width() <= 400
    review.widget.resize(380, review.widget.sizeHint().height())
    assert screenshot(review.widget, f"review-{style}", style).exists()
