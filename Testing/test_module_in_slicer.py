"""Regression tests for faults that were first seen in a real Slicer and that the fake Slicer now reproduces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model", "warm_worker")]
slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("PySide6", reason="needs PySide6")

from module_driving import add_ct, apply, message, read_scene, segmentations, temporary_files, wait_for_end
from review_case import reviewed_case

# Kept, because Qt deletes the contents of a scroll area with it, and the fixture still needs the panel.
AREAS: list[Any] = []
LIBRARY = Path(__file__).parents[1] / "DCASegmentation" / "DCASegmentationLib"


@pytest.fixture
def panel(module_panel) -> Any:
    return module_panel


@pytest.fixture
def case(panel, fake_slicer) -> Any:
    nodes = reviewed_case()
    panel.parameters.inputVolume = nodes.ct
    panel.parameters.resultSegmentation = nodes.segmentation
    fake_slicer.process_events()
    return nodes


def segmented(panel: Any, fake: Any) -> Any:
    """The result of a run, after the panel has shown it completely."""
    from DCASegmentationLib.scene.case_record import read_case_nodes

    apply(panel)
    wait_for_end(panel, fake)
    fake.process_events(0.1)
    assert panel.parameters.resultSegmentation is not None, message(panel)
    return read_case_nodes(panel.parameters.resultSegmentation)


def composite(view: str) -> Any:
    from DCASegmentationLib.scene.view_setup import get_view_node

    return get_view_node("vtkMRMLSliceCompositeNode", view)


def slice_node(view: str) -> Any:
    return slicer.mrmlScene.GetSingletonNode(view, "vtkMRMLSliceNode")


def position(view: str) -> list[float]:
    return [slice_node(view).GetSliceToRAS().GetElement(row, 3) for row in range(3)]


def test_what_changed_shows_its_table_when_it_is_opened(panel, case, fake_slicer):
    panel.ui.reviewSection.collapsed = False
    fake_slicer.process_events()
    panel.reviewPanel.ui.changesButton.checked = True
    fake_slicer.process_events()
    assert panel.reviewPanel.ui.changesTable.visible


def test_groups_show_their_contents_when_opened(panel, fake_slicer):
    ui = panel.segmentPanel.ui
    groups = (ui.modelCardGroup, ui.modelCardBrowser), (ui.logGroup, ui.logText), (ui.advancedGroup, ui.organsList)
    for group, contents in groups:
        group.collapsed = False
        fake_slicer.process_events()
        assert contents.visible


def test_no_collapsible_group_is_hidden_or_shown_by_the_panel():
    """CTK's group box never shows contents that start collapsed."""
    ui = "".join(path.read_text(encoding="utf-8") for path in (LIBRARY.parent / "Resources" / "UI").glob("*.ui"))
    groups = re.findall(r'class="ctkCollapsibleGroupBox" name="(\w+)"', ui)
    code = "".join(path.read_text(encoding="utf-8") for path in (LIBRARY / "widgets").glob("*.py"))
    assert groups
    assert [name for name in groups if re.search(rf"{name}\.(visible =|setVisible|show\(|hide\()", code)] == []


def test_no_callable_is_passed_to_single_shot():
    found = [
        f"{path.name}: {line.strip()}"
        for part in ("widgets", "scene")
        for path in (LIBRARY / part).glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\.singleShot\(", line)
    ]
    assert found == []


def test_the_comparison_opens_at_the_usual_slice_with_the_whole_ct_and_legends(panel, case, fake_slicer):
    slice_node("Red").SetSliceOffset(-240.0)
    where = position("Red")
    panel.ui.expertsSection.collapsed = False
    fake_slicer.process_events(0.05)
    panel.expertsPanel.ui.compareButton.click()
    fake_slicer.process_events(0.1)
    views = fake_slicer.app.layoutManager()
    for name, expert in (("DCAHead", "head"), ("DCAMedium", "medium"), ("DCATail", "tail")):
        assert position(name)[2] == pytest.approx(where[2])
        width, height, _ = slice_node(name).GetFieldOfView()
        columns, rows, _ = slice_node(name).GetDimensions()
        assert width / columns == pytest.approx(height / rows) and width > 200 and height > 200
        legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(case.attention[4][expert])
        assert legend.GetVisibility()
    assert set(views.sliceViewNames()) == {"DCAHead", "DCAMedium", "DCATail"}


@pytest.mark.slow
def test_a_second_run_hides_the_first_result_and_keeps_the_users_views_and_both_are_outlined_under_a_map(
    panel, fake_slicer
):
    panel.parameters.inputVolume = ct = add_ct("CT")
    ct.GetDisplayNode().SetWindowLevel(1500.0, -600.0)
    first = segmented(panel, fake_slicer).segmentation.GetDisplayNode()
    slice_node("Red").SetSliceOffset(-222.0)
    panel.segmentPanel.ui.show3DButton.click()
    nodes = segmented(panel, fake_slicer)
    second = nodes.segmentation.GetDisplayNode()
    assert ct.GetDisplayNode().GetWindow() == 1500.0
    assert position("Red")[2] == pytest.approx(-222.0)
    assert not nodes.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    assert not panel.segmentPanel.ui.show3DButton.checked, "3D stays off"
    assert (first.GetVisibility(), second.GetVisibility()) == (0, 1)
    first.SetVisibility(True)
    panel.parameters.expertMap = "head"
    assert not first.GetVisibility2DFill() and not second.GetVisibility2DFill()
    panel.parameters.expertMap = "none"
    assert first.GetVisibility2DFill() and second.GetVisibility2DFill()


def test_every_finding_lists_its_organs_and_how_far_each_is_checked(panel, case, fake_slicer):
    review = panel.reviewPanel
    panel.ui.reviewSection.collapsed = False
    review.goToNext()
    assert "Liver: 0 of 1 checked" in review.ui.findingLabel.text
    review.ui.acceptButton.click()
    assert "Liver: 1 of 1 checked" in review.ui.findingLabel.text


def test_the_dominant_experts_are_shown_over_each_result_that_the_user_switches_to(panel, case, fake_slicer):
    from DCASegmentationLib.scene.view_setup import show_in_views

    other = reviewed_case()
    panel.parameters.expertMap = "deciding"
    for nodes in (other, case):
        show_in_views(nodes.ct)
        panel.parameters.resultSegmentation = nodes.segmentation
        fake_slicer.process_events(0.1)
        assert composite("Red").GetLabelVolumeID() == nodes.dominant_expert.GetID()


@pytest.mark.parametrize("is_running", [False, True])
def test_every_section_notices_that_the_ct_was_deleted(panel, case, fake_slicer, is_running):
    if is_running:
        panel.parameters.inputVolume = add_ct("Another CT")
        apply(panel)
    slicer.mrmlScene.RemoveNode(case.ct)
    fake_slicer.process_events(0.1)
    assert panel.resultPanel.ui.resultMessageLabel.text.startswith("The CT is no longer in the scene")
    assert panel.resultPanel.ui.segmentsTable.rowCount == 0
    assert panel.expertsPanel._nodes.ct is None
    assert panel.correctPanel.ui.segmentEditor.sourceVolumeNode() is None
    assert panel.reviewPanel.ui.findingsTable.rowCount == 3, "what does not need the CT can still be used"
    wait_for_end(panel, fake_slicer)


def test_the_message_about_a_ct_is_removed_with_the_ct(panel, fake_slicer):
    panel.parameters.inputVolume = add_ct("CT")
    segmented(panel, fake_slicer)
    assert "organs were segmented" in message(panel)
    slicer.mrmlScene.Clear(0)
    fake_slicer.process_events()
    assert message(panel) == ""
    panel.parameters.inputVolume = add_ct("Other")
    assert message(panel) == ""


def test_the_error_of_a_worker_that_cannot_start_is_logged_once(panel, fake_slicer):
    from dcaseg.errors import UserError

    for line in ("Traceback:", "ModuleNotFoundError: torch"):
        panel.segmentPanel.log(line)
    panel.segmentPanel.showError(UserError("It ended.", "Again."), "Traceback:\nModuleNotFoundError: torch\nnew")
    text = panel.segmentPanel.ui.logText.plainText
    assert text.count("ModuleNotFoundError") == 1 and text.count("new") == 1


def test_maps_are_loaded_when_shown_hidden_from_selectors_and_removed_with_their_result(panel, fake_slicer):
    panel.parameters.inputVolume = ct = add_ct("CT")
    nodes = segmented(panel, fake_slicer)
    assert nodes.maps() == []
    composite("Red")  # the fake Slicer's views lose their node when a scene is closed
    panel.parameters.expertMap = "tail"
    (shown,) = panel.expertsPanel._nodes.maps()
    assert composite("Red").GetForegroundVolumeID() == shown.GetID()
    assert panel.segmentPanel.ui.inputVolumeSelector.nodeCount() == 1
    assert fake_slicer.offered_to_save() == [ct.GetName(), nodes.segmentation.GetName()]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(shown))
    assert "maps and review" in hierarchy.GetItemName(folder)
    slicer.mrmlScene.RemoveNode(nodes.segmentation)
    fake_slicer.process_events(0.05)
    assert not slicer.mrmlScene.IsNodePresent(shown)
    assert not hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), "CT organs: maps and review")
    assert temporary_files() == []
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1


@pytest.mark.parametrize("saved", [False, True])
def test_maps_are_saved_only_on_request(panel, fake_slicer, tmp_path, saved):
    panel.parameters.inputVolume = add_ct("CT")
    segmented(panel, fake_slicer)
    panel.parameters.expertMap = "tail"
    panel.parameters.saveMaps = saved
    fake_slicer.wait_for(lambda: not panel.expertsPanel._loading.isRunning)
    slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    fake_slicer.process_events()
    read_scene(tmp_path / "scene.mrb", fake_slicer)
    assert len(panel.expertsPanel._nodes.maps()) == (4 * 3 + 3 if saved else 0)
    assert panel.expertsPanel.choice == ("tail" if saved else "none")
    assert panel.expertsPanel._nodes.automatic is not None, "the data of the review is always saved"


def test_a_new_result_is_shown_in_an_abdominal_window_and_in_3d(panel, fake_slicer):
    from DCASegmentationLib.scene.volumes import ABDOMEN_LEVEL, ABDOMEN_WINDOW

    panel.parameters.inputVolume = ct = add_ct("CT")
    ct.GetDisplayNode().AutoWindowLevelOn()
    slice_node("Red").SetSliceOffset(900.0)
    nodes = segmented(panel, fake_slicer)
    display = ct.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (ABDOMEN_WINDOW, ABDOMEN_LEVEL)
    bounds = [0.0] * 6
    nodes.segmentation.GetRASBounds(bounds)
    assert bounds[4] <= position("Red")[2] <= bounds[5]
    assert nodes.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    assert panel.segmentPanel.ui.show3DButton.checked
    calls = fake_slicer.app.layoutManager().threeDWidget(0).threeDView()._state.calls
    assert "resetFocalPoint" in calls


def test_surfaces_computed_one_by_one_equal_slicers_own_and_follow_an_accepted_alternative(panel, case, fake_slicer):
    from DCASegmentationLib.scene.surfaces import compute_surfaces_in_steps

    content = case.segmentation.GetSegmentation()
    case.segmentation.CreateClosedSurfaceRepresentation()
    expected = points_of(content)
    case.segmentation.RemoveClosedSurfaceRepresentation()
    for _step in compute_surfaces_in_steps(case.segmentation):
        pass
    assert points_of(content) == expected
    review = panel.reviewPanel
    review.goToNext()
    review.ui.suggestionButton.click()
    fake_slicer.process_events(0.1)
    changed = points_of(content)
    assert changed["left_kidney"] == expected["left_kidney"]
    case.segmentation.RemoveClosedSurfaceRepresentation()
    case.segmentation.CreateClosedSurfaceRepresentation()
    assert changed == points_of(content)


def points_of(content: Any) -> dict[str, Any]:
    """The number of points and the bounds of each surface."""
    surfaces = {each: content.GetSegment(each).GetRepresentation("Closed surface") for each in content.GetSegmentIDs()}
    return {
        each: (surfaces[each].GetNumberOfPoints(), tuple(round(bound, 4) for bound in surfaces[each].GetBounds()))
        for each in content.GetSegmentIDs()
    }


def test_sections_are_in_workflow_order_and_only_result_opens_by_itself(panel, fake_slicer):
    layout = panel.widget.layout()
    order = [layout.itemAt(index).widget() for index in range(layout.count())]
    names = [widget.name.removesuffix("Section") for widget in order if widget is not None]
    assert names == ["guideFrame", "segment", "result", "review", "correct", "experts", "batch", "setup"]
    panel.parameters.inputVolume = add_ct("CT")
    segmented(panel, fake_slicer)
    sections = ("result", "review", "correct", "experts", "batch", "setup")
    assert [getattr(panel.ui, f"{name}Section").collapsed for name in sections] == [False, *[True] * 5]
    panel.ui.resultSection.collapsed, panel.ui.reviewSection.collapsed = True, False
    segmented(panel, fake_slicer)
    assert [getattr(panel.ui, f"{name}Section").collapsed for name in sections] == [False, False, *[True] * 4]


def test_only_selected_organs_become_segments(panel, fake_slicer):
    import qt

    panel.parameters.inputVolume = add_ct("CT")
    everything = segmented(panel, fake_slicer).segmentation.GetSegmentation().GetSegmentIDs()
    organs = panel.segmentPanel.ui.organsList
    wanted = everything[0]
    for row in range(organs.count):
        if organs.item(row).data(qt.Qt.UserRole) == wanted:
            organs.item(row).setCheckState(qt.Qt.Checked)
    assert panel.parameters.organs == wanted
    assert list(segmented(panel, fake_slicer).segmentation.GetSegmentation().GetSegmentIDs()) == [wanted]


def test_edit_here_scrolls_to_the_editor(panel, case, fake_slicer):
    import qt

    area = qt.QScrollArea()
    AREAS.append(area)
    area.setWidgetResizable(True)
    area.setWidget(panel.widget.parent())
    area.resize(360, 400)
    area.show()
    panel.ui.reviewSection.collapsed = False
    fake_slicer.process_events(0.05)
    panel.reviewPanel.goToNext()
    panel.reviewPanel.ui.editButton.click()
    fake_slicer.process_events(0.1)
    editor = panel.correctPanel.widget
    top = editor.mapTo(area.widget(), qt.QPoint(0, 0)).y() - area.verticalScrollBar().value
    assert 0 <= top < 400
    area.hide()


def test_the_panel_needs_no_more_than_340_pixels_with_everything_open(panel, case, fake_slicer):
    sections = [
        getattr(panel.ui, f"{name}Section")
        for name in ("segment", "result", "review", "correct", "experts", "batch", "setup")
    ]
    for section in sections:
        section.collapsed = False
    for group in (
        panel.segmentPanel.ui.modelCardGroup,
        panel.segmentPanel.ui.advancedGroup,
        panel.segmentPanel.ui.logGroup,
    ):
        group.collapsed = False
    panel.reviewPanel.ui.changesButton.checked = True
    panel.reviewPanel.goToNext()
    panel.expertsPanel.ui.compareButton.enabled = True
    fake_slicer.process_events(0.1)
    widths = {section.name: section.minimumSizeHint().width() for section in sections}
    assert panel.widget.minimumSizeHint().width() <= 340, widths


def test_the_guided_first_run_leads_to_result_review_and_correct_and_is_shown_once(panel, fake_slicer):
    fake_slicer.sample_data.download = lambda: add_ct("CTLiver")
    ui = panel.ui
    assert ui.guideFrame.visible and ui.guideButton.text == "Try it on a sample CT"
    ui.guideButton.click()
    wait_for_end(panel, fake_slicer)
    fake_slicer.process_events(0.1)
    assert "Result" in ui.guideLabel.text and not ui.resultSection.collapsed
    ui.guideButton.click()
    assert "Review" in ui.guideLabel.text and not ui.reviewSection.collapsed
    ui.guideButton.click()
    assert "Correct" in ui.guideLabel.text and not ui.correctSection.collapsed
    ui.guideButton.click()
    assert not ui.guideFrame.visible
    slicer.mrmlScene.Clear(0)
    panel.exit()
    panel.enter()
    fake_slicer.process_events()
    assert not ui.guideFrame.visible and panel.segmentPanel.ui.sampleButton.visible


def test_a_failed_download_of_the_sample_ct_is_reported(panel, fake_slicer):
    panel.ui.guideButton.click()
    assert panel.ui.guideButton.text == "Try it on a sample CT", "the user can try again"
    panel.ui.guideCloseButton.click()
    assert not panel.ui.guideFrame.visible and panel.segmentPanel.ui.sampleButton.visible
    panel.segmentPanel.clearMessage()
    panel.segmentPanel.ui.sampleButton.click()
    problem = "The sample CT could not be downloaded (Download failed: &lt;urlopen error Host not found&gt;)."
    assert problem in message(panel)
    assert segmentations() == []


def test_the_download_of_the_sample_ct_shows_its_progress(panel, fake_slicer, monkeypatch):
    from DCASegmentationLib.scene.sample_data import load_sample_ct

    shown = []
    fake_slicer.sample_data.download = lambda: add_ct("CTLiver")
    assert load_sample_ct(shown.append).GetName() == "CTLiver"
    assert shown[-1] == "Downloaded 1.0 MB (50% of 2.0 MB)..."
