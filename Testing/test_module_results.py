"""The Experts, Result, and Correct sections in the fake Slicer, with a real scene and stand-in widgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import SimpleITK as sitk
import vtk

from dcaseg.organs import AMOS
from scene_case import BOXES, SyntheticResult, small_ct, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("PySide6", reason="needs PySide6")
pytestmark = pytest.mark.scene

UI_FOLDER = Path(__file__).parents[1] / "DCASegmentation" / "Resources" / "UI"


@pytest.fixture
def case(fake_slicer):
    from DCASegmentationLib.scene.scene_builder import build_scene

    return build_scene(small_ct(), small_result(), AMOS, name="Case")


@pytest.fixture
def layout(fake_slicer):
    """The layout that panels are added to, in a window as narrow as Slicer's panel."""
    import qt

    window = qt.QWidget()
    window.setLayout(qt.QVBoxLayout())
    window.resize(400, 700)
    window.show()
    yield window.layout()
    window.close()


@pytest.fixture
def parameters(fake_slicer):
    from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

    share = Annotated[float, WithinRange(0.0, 1.0)]
    kinds = {"expertLevel": int, "expertMap": str, "mapOpacity": share, "mapThreshold": share, "colorMap": str}
    kinds |= {"showLegend": bool, "saveMaps": bool}
    defaults = {"expertLevel": 4, "expertMap": "none", "mapOpacity": 0.5, "mapThreshold": 0.0, "colorMap": "Viridis"}
    attributes = {"__annotations__": kinds, **defaults, "showLegend": True, "saveMaps": False}
    wrapper = parameterNodeWrapper(type("Choices", (), attributes))
    return wrapper(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))


@pytest.fixture
def experts(layout, parameters):
    from DCASegmentationLib.widgets.experts_panel import ExpertsPanel

    panel = ExpertsPanel(layout, UI_FOLDER)
    tag = parameters.connectGui(panel.ui)
    panel.setParameterNode(parameters)
    panel.enter()
    panel.setOpen(True)
    yield panel
    panel.setParameterNode(None)
    parameters.disconnectGui(tag)
    panel.cleanup()


@pytest.fixture
def result(fake_slicer, layout):
    from DCASegmentationLib.widgets.result_panel import ResultPanel

    panel = ResultPanel(layout, UI_FOLDER)
    panel.enter()
    fake_slicer.process_events()
    yield panel
    panel.cleanup()


@pytest.fixture
def correct(fake_slicer, layout):
    from DCASegmentationLib.widgets.correct_panel import CorrectPanel

    panel = CorrectPanel(layout, UI_FOLDER)
    panel.enter()
    fake_slicer.process_events()
    yield panel
    panel.cleanup()


def red():
    return slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceCompositeNode")


def choose(selector, data):
    """Select an item of the list, as a user does."""
    index = selector.findData(data)
    assert index >= 0, f"{data} is not offered"
    selector.currentIndex = index
    selector.activated.emit(index)


def texts(table):
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def paint(segmentation, segment_id, box, ct_node):
    array = np.zeros(small_ct().GetSize()[::-1], np.uint8)
    array[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, segmentation, segment_id, ct_node)


def test_without_a_result_the_sections_say_so_and_disable_everything(experts, result, correct):
    assert experts.ui.expertsHintLabel.text == "Segment a CT to see what each expert contributed."
    assert not experts.ui.mapSelector.enabled
    assert not experts.ui.compareButton.enabled
    assert not result.ui.segmentsTable.visible
    assert not result.ui.saveSurfacesButton.visible
    assert not correct.ui.segmentEditor.visible


def test_a_new_result_shows_organs_and_no_map(experts, case):
    experts.setResult(case)
    assert red().GetForegroundVolumeID() is None
    assert red().GetLabelVolumeID() is None
    assert case.segmentation.GetDisplayNode().GetVisibility2DFill()
    offered = [experts.ui.mapSelector.itemData(index) for index in range(experts.ui.mapSelector.count)]
    assert offered == ["none", "deciding", "head", "medium", "tail", "uncertainty"]


def test_choices_are_applied_to_the_views(experts, case, parameters):
    experts.setResult(case)
    choose(experts.ui.mapSelector, "head")
    experts.ui.mapOpacitySlider.value = 0.8
    experts.ui.mapThresholdSlider.value = 0.3
    choose(experts.ui.colorMapSelector, "Cividis")
    experts.ui.legendCheckBox.checked = False
    node = case.attention[4]["head"]
    assert red().GetForegroundVolumeID() == node.GetID()
    assert red().GetForegroundOpacity() == pytest.approx(0.8)
    assert node.GetDisplayNode().GetLowerThreshold() == pytest.approx(0.3)
    assert node.GetDisplayNode().GetColorNode().GetName() == "Cividis (0 to 1)"
    assert not slicer.modules.colors.logic().GetColorLegendDisplayNode(node).GetVisibility()
    assert (parameters.expertMap, parameters.colorMap, parameters.showLegend) == ("head", "Cividis", False)


def test_a_restored_parameter_node_shows_in_widgets_and_views(experts, case, parameters):
    experts.setResult(case)
    parameters.expertMap = "deciding"
    parameters.mapOpacity = 0.25
    assert experts.ui.mapSelector.currentText == "Dominant expert"
    assert experts.ui.mapOpacitySlider.value == pytest.approx(0.25)
    assert not experts.ui.mapThresholdSlider.enabled
    assert red().GetLabelVolumeID() == case.dominant_expert.GetID()
    assert red().GetLabelOpacity() == pytest.approx(0.25)


def test_views_stay_with_the_ct_that_the_user_looks_at(experts, case, parameters):
    from DCASegmentationLib.scene.volumes import show_ct

    experts.setResult(case)
    other = show_ct(small_ct(), "Another CT").GetID()
    for each in composites():
        each.SetBackgroundVolumeID(other)
    parameters.mapOpacity = 0.7
    experts.exit()
    experts.enter()
    parameters.expertMap = "head"
    assert {each.GetBackgroundVolumeID() for each in composites()} == {other}
    assert {each.GetForegroundVolumeID() for each in composites()} == {None}
    choose(experts.ui.mapSelector, "tail")
    assert {each.GetBackgroundVolumeID() for each in composites()} == {case.ct.GetID()}
    assert red().GetForegroundVolumeID() == case.attention[4]["tail"].GetID()
    for each in composites():
        each.SetBackgroundVolumeID(other)
    slicer.mrmlScene.RemoveNode(case.ct)
    choose(experts.ui.mapSelector, "head")
    assert {each.GetBackgroundVolumeID() for each in composites()} == {other}


def composites():
    return [slicer.mrmlScene.GetSingletonNode(view, red().GetClassName()) for view in ("Red", "Yellow", "Green")]


def case_with_map_files(folder):
    """A case whose maps are still files, as after a run."""
    from DCASegmentationLib.scene.maps import take_map_files
    from DCASegmentationLib.scene.scene_builder import build_scene

    result = small_result()
    nodes = build_scene(small_ct(), SyntheticResult(result.labels), AMOS, name="Case")
    folder.mkdir()
    for expert, image in result.attention[4].items():
        sitk.WriteImage(image, str(folder / f"attention_{expert}_level4.nrrd"))
    sitk.WriteImage(result.entropy, str(folder / "entropy.nrrd"))
    sitk.WriteImage(result.dominant_expert, str(folder / "dominant_expert.nrrd"))
    take_map_files(folder, nodes, Path(slicer.app.temporaryPath))
    return nodes


def test_maps_of_later_results_and_their_colors_are_saved_too(fake_slicer, experts, parameters, tmp_path):
    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.maps import list_available_maps

    first = case_with_map_files(tmp_path / "first")
    experts.setResult(first)
    experts.ui.saveMapsCheckBox.setChecked(True)
    second = case_with_map_files(tmp_path / "second")
    experts.setResult(second)
    fake_slicer.wait_for(lambda: not experts._loading.isRunning)
    maps = read_case_nodes(second.segmentation).maps()
    assert len(maps) == len(list_available_maps(second)) == 5
    assert all(node.GetSaveWithScene() for node in maps)
    parameters.expertMap, parameters.colorMap = "head", "Cividis"
    node = read_case_nodes(second.segmentation).attention[4]["head"]
    assert node.GetDisplayNode().GetColorNode().GetSaveWithScene()
    experts.ui.saveMapsCheckBox.setChecked(False)
    assert not any(node.GetSaveWithScene() for node in maps)


def test_a_map_loaded_by_another_part_of_the_panel_is_not_loaded_twice(fake_slicer, case, tmp_path):
    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.maps import load_map_volume

    nodes = case_with_map_files(tmp_path / "result")
    one, other = read_case_nodes(nodes.segmentation), read_case_nodes(nodes.segmentation)
    assert load_map_volume(one, "entropy") is load_map_volume(other, "entropy") is not None
    assert len(other.maps()) == 1


def test_the_maps_stay_when_a_clone_gets_another_result(fake_slicer, tmp_path):
    from DCASegmentationLib.scene.maps import list_available_maps, remove_map_files

    nodes = case_with_map_files(tmp_path / "result")
    clone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Clone")
    clone.CopyContent(nodes.segmentation)
    remove_map_files(clone)
    assert len(list_available_maps(nodes)) == 5
    remove_map_files(nodes.segmentation)
    assert list_available_maps(nodes) == set()


@pytest.mark.parametrize("is_hardened", [False, True])
def test_a_map_loaded_after_the_ct_was_moved_lies_over_the_ct(fake_slicer, case, tmp_path, is_hardened):
    from DCASegmentationLib.scene.maps import load_map_volume

    nodes = case_with_map_files(tmp_path / "result")
    matrix = vtk.vtkTransform()
    matrix.RotateZ(20.0)
    matrix.Translate(20.0, -3.0, 8.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Registration")
    transform.SetMatrixTransformToParent(matrix.GetMatrix())
    nodes.ct.SetAndObserveTransformNodeID(transform.GetID())
    if is_hardened:
        nodes.ct.HardenTransform()
    node = load_map_volume(nodes, "entropy")
    assert node.GetTransformNodeID() == nodes.ct.GetTransformNodeID()
    np.testing.assert_allclose(grid_of(node), grid_of(nodes.ct), atol=1e-9)


def grid_of(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def test_the_section_says_what_the_experts_are_in_words_that_are_no_anatomy(fake_slicer, experts, case):
    ui = experts.ui
    fake_slicer.process_events()
    assert "large (head), medium, and small (tail) organs" in ui.expertsIntroLabel.text
    experts.setResult(case)
    assert ui.expertsIntroLabel.visible
    titles = [ui.mapSelector.itemText(index) for index in range(ui.mapSelector.count)]
    assert titles[2:5] == [
        "Attention: large organs (head)",
        "Attention: medium organs",
        "Attention: small organs (tail)",
    ]
    header = [ui.attentionTable.horizontalHeaderItem(column).text() for column in range(4)]
    assert header == ["Organ", "Large", "Medium", "Small"]


def test_a_result_of_a_model_without_experts_does_not_speak_of_them(experts, fake_slicer):
    from DCASegmentationLib.scene.scene_builder import build_scene

    experts.setResult(build_scene(small_ct(), SyntheticResult(small_result().labels), AMOS, name="Case"))
    assert not experts.ui.expertsIntroLabel.visible


def test_a_choice_that_the_result_lacks_shows_no_map(experts, case, parameters):
    parameters.expertMap, parameters.expertLevel = "disagreement", 2
    experts.setResult(case)
    assert experts.ui.mapSelector.currentText == "None"
    assert experts.ui.levelSelector.currentData == 4
    assert red().GetForegroundVolumeID() is None


@pytest.mark.parametrize("deleted", [False, True])
def test_the_map_of_an_earlier_result_is_removed_with_it(experts, case, parameters, deleted):
    experts.setResult(case)
    parameters.expertMap = "head"
    if deleted:
        slicer.mrmlScene.RemoveNode(case.segmentation)
    experts.setResult(None)
    assert red().GetForegroundVolumeID() is None
    assert deleted or case.segmentation.GetDisplayNode().GetVisibility2DFill()
    assert not experts.ui.mapSelector.enabled


def test_experts_are_compared_side_by_side_and_the_layout_is_restored(fake_slicer, experts, case):
    layouts = fake_slicer.app.layoutManager()
    before = layouts.layout
    experts.setResult(case)
    experts.ui.compareButton.click()
    assert layouts.sliceViewNames() == ("DCAHead", "DCAMedium", "DCATail")
    shown = {name: layouts.sliceWidget(name).mrmlSliceCompositeNode() for name in layouts.sliceViewNames()}
    assert [each.GetForegroundVolumeID() for each in shown.values()] == [
        case.attention[4][name].GetID() for name in ("head", "medium", "tail")
    ]
    assert all(each.GetLinkedControl() for each in shown.values())
    experts.ui.mapOpacitySlider.value = 0.9
    assert {each.GetForegroundOpacity() for each in shown.values()} == {0.9}
    experts.ui.compareButton.click()
    assert layouts.layout == before
    assert case.segmentation.GetDisplayNode().GetVisibility2DFill()


def test_leaving_the_comparison_with_slicers_menu_is_noticed(fake_slicer, experts, case):
    experts.setResult(case)
    experts.ui.compareButton.click()
    fake_slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
    assert not experts.ui.compareButton.checked
    assert case.segmentation.GetDisplayNode().GetVisibility2DFill()


def test_the_bar_plot_opens_in_slicers_plot_view(fake_slicer, experts, case):
    experts.setResult(case)
    fake_slicer.process_events()
    experts.ui.plotButton.click()
    layouts = fake_slicer.app.layoutManager()
    chart = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
    assert layouts.plotViewCount == 1
    assert layouts.plotWidget(0).mrmlPlotViewNode().GetPlotChartNodeID() == chart.GetID()
    experts.ui.plotButton.click()
    assert layouts.plotViewCount == 0


def test_the_attention_table_follows_a_correction(fake_slicer, experts, case):
    experts.setResult(case)
    fake_slicer.process_events()
    table = experts.ui.attentionTable
    assert ["Liver", "0.90", "0.10", "0.00"] in [[cell.replace("0.09", "0.10") for cell in row] for row in texts(table)]
    assert table.item(3, 1).font().bold()
    assert not table.item(3, 2).font().bold()
    paint(case.segmentation, "liver", BOXES["left_kidney"], case.ct)
    fake_slicer.wait_for(lambda: texts(table)[3] == ["Liver", "0.10", "0.09", "0.81"])


def test_the_read_out_follows_the_mouse(experts, case):
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    experts.setResult(case)
    left, posterior, superior = small_ct().TransformIndexToPhysicalPoint((10, 14, 15))
    crosshair.SetCursorPositionRAS([-left, -posterior, superior])
    assert experts.ui.cursorOrganLabel.text == "Liver, 100 HU"
    assert experts.ui.cursorAttentionLabel.text == "large 0.90 · medium 0.09 · small 0.00"
    assert experts.ui.cursorUncertaintyLabel.text == "0.10"
    crosshair.SetCursorPositionInvalid()
    assert experts.ui.cursorOrganLabel.text == "\N{EN DASH}"
    experts.exit()
    crosshair.SetCursorPositionRAS([-left, -posterior, superior])
    assert experts.ui.cursorOrganLabel.text == "\N{EN DASH}"


def test_the_segments_table_shows_measurements_and_follows_a_correction(fake_slicer, result, case):
    result.setResult(case)
    assert texts(result.ui.segmentsTable) == [
        ["Spleen", "184.3", "100"],
        ["Right kidney", "69.1", "100"],
        ["Left kidney", "69.1", "100"],
        ["Liver", "645.1", "100"],
    ]
    fat = (slice(0, 10), slice(2, 4), slice(2, 12))
    paint(case.segmentation, "liver", fat, case.ct)
    # Its new part is in the first slice.
    mean = slicer.util.arrayFromVolume(case.ct)[fat].mean()
    cut_off = ["Liver", "\N{GREATER-THAN OR EQUAL TO} 48.0", f"{mean:.0f}"]
    fake_slicer.wait_for(lambda: texts(result.ui.segmentsTable)[3] == cut_off)


def test_a_segmentation_stored_as_surfaces_says_so_and_is_measured_again_when_it_is_not(
    fake_slicer, result, experts, case, tmp_path
):
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    content = case.segmentation.GetSegmentation()
    result.setResult(case)
    experts.setResult(case)
    case.segmentation.CreateClosedSurfaceRepresentation()
    content.SetSourceRepresentationName("Closed surface")
    fake_slicer.wait_for(lambda: texts(result.ui.segmentsTable) == [])
    assert "stored as closed surface, not as voxels" in result.ui.resultMessageLabel.text
    crosshair.SetCursorPositionRAS([0.0, 0.0, 0.0])
    fake_slicer.dialogs.answer(str(tmp_path / "organs.seg.nrrd"))
    result.ui.saveSegmentationButton.click()
    assert "binary labelmap" in result.ui.resultMessageLabel.text and list(tmp_path.iterdir()) == []
    content.SetSourceRepresentationName("Binary labelmap")
    fake_slicer.wait_for(lambda: len(texts(result.ui.segmentsTable)) == 4)
    assert result.ui.resultMessageLabel.text == ""


def test_check_boxes_and_visibility_follow_each_other(result, case):
    import qt

    result.setResult(case)
    display = case.segmentation.GetDisplayNode()
    result.ui.segmentsTable.item(3, 0).setCheckState(qt.Qt.Unchecked)
    assert not display.GetSegmentVisibility("liver")
    assert display.GetSegmentVisibility("spleen")
    display.SetSegmentVisibility("spleen", False)
    assert result.ui.segmentsTable.item(0, 0).checkState() == qt.Qt.Unchecked


def press(widget, key):
    from PySide6.QtTest import QTest

    QTest.keyClick(widget, key)


def test_a_double_click_or_enter_goes_to_the_organ(result, case):
    import qt

    result.setResult(case)
    result.ui.segmentsTable.setCurrentCell(0, 1)
    # An item view emits the same signal for Enter and for a double click.
    press(result.ui.segmentsTable, qt.Qt.Key_Return)
    index = [(part.start + part.stop - 1) / 2 for part in reversed(BOXES["spleen"])]
    left, posterior, superior = small_ct().TransformContinuousIndexToPhysicalPoint(index)
    node = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    center = [node.GetSliceToRAS().GetElement(row, 3) for row in range(3)]
    assert center == pytest.approx([-left, -posterior, superior], abs=5.0)  # half a voxel, tilted


def test_the_table_is_copied_and_saved(fake_slicer, result, case, tmp_path):
    import qt

    result.setResult(case)
    result.ui.copyButton.click()
    assert qt.QApplication.clipboard().text().splitlines()[1].startswith("spleen\tSpleen\t184.320\t100.0")
    fake_slicer.dialogs.answer(str(tmp_path / "organs"))
    result.ui.saveTableButton.click()
    assert (tmp_path / "organs.csv").read_text().splitlines()[1].startswith("spleen,Spleen,184.320,100.0")
    assert "organs.csv" in result.ui.resultMessageLabel.text


def test_segmentation_and_surfaces_are_saved(fake_slicer, result, case, tmp_path):
    result.setResult(case)
    fake_slicer.dialogs.answer(str(tmp_path / "organs.seg.nrrd"), str(tmp_path))
    result.ui.saveSegmentationButton.click()
    result.ui.saveSurfacesButton.click()
    assert len(list(tmp_path.glob("*.stl"))) == 4
    assert (tmp_path / "organs.seg.nrrd").stat().st_size > 0


def test_a_name_completed_by_the_panel_overwrites_nothing(fake_slicer, result, case, tmp_path):
    existing = tmp_path / "organs.csv"
    existing.write_text("precious")
    result.setResult(case)
    fake_slicer.dialogs.answer(str(tmp_path / "organs"))
    result.ui.saveTableButton.click()
    assert existing.read_text() == "precious"
    assert "already exists" in result.ui.resultMessageLabel.text


def test_the_suggested_file_name_is_allowed_on_every_system(fake_slicer, result, case):
    case.segmentation.SetName("6: CHEST/ABD organs")
    result.setResult(case)
    fake_slicer.dialogs.answer("")
    result.ui.saveTableButton.click()
    assert Path(fake_slicer.dialogs.shown[-1].detail).name == "6_ CHEST_ABD organs.csv"


@pytest.mark.parametrize("is_saved", [False, True])
def test_dialogs_open_in_the_folder_of_the_scene_or_in_slicers_own(fake_slicer, result, case, tmp_path, is_saved):
    slicer.mrmlScene.SetRootDirectory(str(tmp_path) if is_saved else ".")
    result.setResult(case)
    fake_slicer.dialogs.answer("", "")
    result.ui.saveTableButton.click()
    result.ui.saveSurfacesButton.click()
    folder = tmp_path if is_saved else Path(fake_slicer.app.defaultScenePath)
    table, surfaces = (Path(each.detail) for each in fake_slicer.dialogs.shown)
    slicer.mrmlScene.SetRootDirectory("")
    assert table.parent == surfaces == folder


def test_cancelling_a_file_dialog_writes_nothing(fake_slicer, result, case, tmp_path):
    result.setResult(case)
    fake_slicer.dialogs.answer("", "")
    result.ui.saveTableButton.click()
    result.ui.saveSurfacesButton.click()
    assert not result.ui.resultMessageLabel.visible


def test_dicom_seg_export_is_enabled_if_slicer_supports_it_and_the_ct_came_from_dicom(result, case, monkeypatch):
    from DCASegmentationLib.scene.subject_hierarchy import add_to_subject_hierarchy
    from fake_slicer.dicom_dialog import qSlicerDICOMExportDialog

    result.setResult(case)
    button = result.ui.exportDICOMButton
    assert not button.visible
    monkeypatch.setattr(slicer.modules, "dicomPlugins", {"DICOMSegmentationPlugin": object}, raising=False)
    result.setResult(case)
    assert button.visible and not button.enabled
    assert "was not loaded from DICOM" in button.toolTip
    case.ct.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    add_to_subject_hierarchy(case.ct, case.segmentation)
    result.setResult(case)
    button.click()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert qSlicerDICOMExportDialog._opened_for.pop() == hierarchy.GetItemByDataNode(case.segmentation)


def test_a_result_can_be_saved_without_its_ct(result, experts, case):
    slicer.mrmlScene.RemoveNode(case.ct)
    from DCASegmentationLib.scene.case_record import read_case_nodes

    left = read_case_nodes(case.segmentation)
    result.setResult(left)
    experts.setResult(left)
    assert "no longer in the scene" in result.ui.resultMessageLabel.text
    assert result.ui.saveSegmentationButton.visible


def test_the_editor_edits_the_segmentation_on_the_ct_with_undo(correct, case):
    correct.setResult(case)
    editor = correct.ui.segmentEditor
    assert editor.visible
    assert editor.mrmlSegmentEditorNode().GetSingletonTag() == "DCASegmentation"
    assert editor.segmentationNode() is case.segmentation
    assert editor.sourceVolumeNode() is case.ct
    assert editor.maximumNumberOfUndoStates == 10
    assert editor.undoEnabled


def test_an_effect_that_an_extension_adds_later_is_listed(correct):
    factory = slicer.qSlicerSegmentEditorEffectFactory.instance()
    factory._state.names.append("Local Threshold")
    factory.effectRegistered.emit("Local Threshold")
    assert correct.ui.segmentEditor._state.effects == ["Local Threshold"]
    correct.cleanup()
    factory._state.names.clear()
    factory.effectRegistered.emit("")
    assert correct.ui.segmentEditor._state.effects == ["Local Threshold"], "nothing is connected any more"


def test_leaving_the_section_deactivates_the_effect(correct, case):
    correct.setResult(case)
    correct.ui.segmentEditor.setActiveEffectByName("Paint")
    assert correct.ui.segmentEditor.activeEffect()
    correct.exit()
    assert correct.ui.segmentEditor.activeEffect() is None


def test_the_sections_show_a_new_result_after_the_scene_was_closed(experts, result, correct):
    from DCASegmentationLib.scene.scene_builder import build_scene

    for _ in range(2):
        for panel in (experts, result, correct):
            panel.setResult(None)
        slicer.mrmlScene.Clear(0)
        case = build_scene(small_ct(), small_result(), AMOS, name="Case")
        for panel in (experts, result, correct):
            panel.setResult(case)
        assert result.ui.segmentsTable.rowCount == 4
        assert correct.ui.segmentEditor.segmentationNode() is case.segmentation


@pytest.mark.parametrize("style", ["light", "dark"])
def test_the_sections_fit_into_400_pixels(experts, result, correct, case, screenshot, layout, style, parameters):
    for panel in (experts, result, correct):
        panel.setResult(case)
    parameters.expertMap = "head"
    window = experts.widget.parent()
    for name, panel in (("experts", experts), ("result", result), ("correct", correct)):
        assert panel.widget.minimumSizeHint().width() <= 380
        assert screenshot(panel.widget, f"{name}-{style}", style).exists()
    assert window.width == 400
