"""Fix with clicks, operated with the mouse and the keyboard as a user does, with the real worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vtk

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytest.importorskip("PySide6", reason="needs PySide6")
pytestmark = [pytest.mark.scene, pytest.mark.slow, pytest.mark.usefixtures("one_model")]

from dcaseg.organs import AMOS
from module_driving import apply, message, temporary_files
from review_case import label_array, labels_of, paint, reviewed_case
from scene_case import BOXES, small_ct

SPLEEN, LIVER = AMOS.by_key["spleen"].label, AMOS.by_key["liver"].label
# Indices (z, y, x): the part of the spleen that is removed before the clicks, and voxels in it.
GONE = (slice(12, 20), slice(18, 24), slice(26, 34))
# The share of GONE that one click has to fill, as in
# test_interaction.test_one_click_fills_most_of_an_erased_block.
FILLED = 0.5
IN_GONE, ALSO_IN_GONE = (16, 21, 30), (14, 20, 28)
IN_SPLEEN, IN_LIVER, IN_FAT = (16, 14, 30), (14, 12, 8), (22, 10, 22)


@pytest.fixture
def panel(warm_worker, module_panel) -> Any:
    return module_panel


@pytest.fixture
def case(panel, fake_slicer) -> Any:
    """A case whose spleen is half missing, shown in the panel."""
    nodes = reviewed_case()
    paint(nodes, "spleen", GONE, 0)
    panel.parameters.inputVolume = nodes.ct
    panel.parameters.resultSegmentation = nodes.segmentation
    panel.ui.correctSection.collapsed = False
    fake_slicer.process_events()
    return nodes


@pytest.fixture
def tool(panel, case, fake_slicer) -> Any:
    """The tool, turned on for the spleen."""
    clicks = panel.clickPanel
    clicks.ui.clicksButton.click()
    choose(clicks, "Spleen")
    return Tool(clicks, fake_slicer)


def choose(clicks, name):
    index = clicks.ui.clickTargetSelector.findText(name)
    assert index >= 0, name
    clicks.ui.clickTargetSelector.currentIndex = index


def position(index):
    """RAS (mm) of the voxel ``index`` (z, y, x)."""
    x, y, z = small_ct().TransformContinuousIndexToPhysicalPoint([float(each) for each in reversed(index)])
    return -x, -y, z


class Tool:
    """The mouse in the red slice view, the keys, and the message."""

    def __init__(self, panel, fake):
        self.panel, self.fake = panel, fake

    @property
    def view(self):
        return slicer.app.layoutManager().sliceWidget("Red").sliceView()

    def send(self, event, ras, ctrl=False, shift=False):
        x, y, _z = self.view.convertRASToXYZ(ras)
        self.view.interactor().SetEventInformation(round(x), round(y), int(ctrl), int(shift))
        self.view.interactor().InvokeEvent(event)

    def drag(self, *indices, wait=True, press="LeftButtonPressEvent", **keys):
        points = [position(index) for index in indices]
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *points[0])
        self.send(press, points[0], **keys)
        for point in points[1:]:
            self.send("MouseMoveEvent", point, **keys)
        self.send("LeftButtonReleaseEvent", points[-1], **keys)
        if wait:
            self.wait()

    def click(self, index, **options):
        self.drag(index, **options)

    def wait(self):
        self.fake.wait_for(lambda: not self.panel.correction.isWaiting, 120)

    def press(self, keys):
        assert self.panel.shortcuts[keys].enabled
        self.panel.shortcuts[keys].activated.emit()
        self.fake.process_events()

    @property
    def message(self):
        return self.panel.ui.clicksMessageLabel.text


def preview():
    """The visible outlines of clicks: "added", "removed", "box"."""
    names = {"Clicks add": "added", "Clicks remove": "removed", "Box around an organ": "box"}
    shown = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if node.GetDisplayVisibility()]
    return tuple(kind for name, kind in names.items() if name in shown)


def spleen_size(case):
    return int((labels_of(case) == SPLEEN).sum())


def status_of(case, segment_id):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    return logic.GetSegmentStatusAsMachineReadableString(
        logic.GetSegmentStatus(case.segmentation.GetSegmentation().GetSegment(segment_id))
    )


def accept(case, segment_id):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(case.segmentation.GetSegmentation().GetSegment(segment_id), logic.Completed)


def test_a_click_is_previewed_and_enter_keeps_it_as_one_step_of_undo(panel, tool, case, fake_slicer):
    from DCASegmentationLib.scene.click_labels import get_clicks_by_segment

    before = labels_of(case)
    tool.click(IN_GONE)
    assert preview() == ("added",) and "Spleen: +" in tool.message and "Enter keeps it" in tool.message
    np.testing.assert_array_equal(labels_of(case), before)
    tool.press("Return")
    after = labels_of(case)
    gained = (after == SPLEEN) & (before != SPLEEN)
    assert gained[GONE].mean() > FILLED and gained.sum() - gained[GONE].sum() < 60
    np.testing.assert_array_equal(
        after[before != SPLEEN][~gained[before != SPLEEN]], before[before != SPLEEN][~gained[before != SPLEEN]]
    )
    assert preview() == () and status_of(case, "spleen") == "inprogress"
    assert get_clicks_by_segment(case.segmentation) == {"Spleen": (1, 0)}
    fake_slicer.process_events(0.7)
    assert panel.reviewPanel._state.status(2) == "to_check", "its voxels were not touched"
    panel.correctPanel.ui.segmentEditor.undo()
    np.testing.assert_array_equal(labels_of(case), before)
    assert get_clicks_by_segment(case.segmentation) == {}


def test_escape_drops_the_preview_and_the_click_can_be_repeated(tool, case):
    before = labels_of(case)
    tool.click(IN_GONE)
    said = tool.message
    tool.press("Escape")
    assert preview() == () and "Nothing was changed" in tool.message
    np.testing.assert_array_equal(labels_of(case), before)
    tool.click(IN_GONE)
    assert tool.message == said
    tool.press("Escape")


def test_escape_also_drops_clicks_that_are_still_computed(tool, case):
    tool.click(IN_GONE)
    tool.press("Enter")
    kept = labels_of(case)
    tool.click(ALSO_IN_GONE, wait=False, ctrl=True)
    tool.click(IN_FAT, wait=False)
    tool.press("Escape")
    tool.fake.process_events(2.0)
    assert preview() == () and not tool.panel.correction.isWaiting
    tool.click(IN_SPLEEN)
    assert "agrees with the segment" in tool.message
    tool.press("Return")
    np.testing.assert_array_equal(labels_of(case), kept)


def test_every_kept_click_is_its_own_step_of_undo(panel, tool, case):
    sizes = [spleen_size(case)]
    tool.drag((13, 19, 27), (13, 20, 27))
    first = panel.clickPanel.correction._previewed[0]
    tool.click((18, 22, 32))
    if not panel.clickPanel.correction._previewed[-1].gained:
        tool.click((19, 23, 33))
    changes = [each for each in panel.clickPanel.correction._previewed if each.gained or each.lost]
    tool.press("Return")
    assert spleen_size(case) == sizes[0] + sum(each.gained - each.lost for each in changes)
    for _step in changes:
        tool.press("Ctrl+Z")
    assert spleen_size(case) == sizes[0] and first.gained


def test_the_last_click_of_a_preview_is_dropped_alone(tool, case):
    tool.click(IN_GONE)
    said = tool.message
    tool.click((16, 14, 28), ctrl=True)
    assert set(preview()) == {"added", "removed"}
    tool.press("Ctrl+Z")
    assert preview() == ("added",) and tool.message == said
    tool.press("Ctrl+Z")
    assert preview() == ()


def test_ctrl_and_the_switch_remove(tool, case):
    before = spleen_size(case)
    tool.click((12, 12, 26), ctrl=True)
    assert "removed" in preview()
    tool.press("Return")
    after = spleen_size(case)
    assert after < before
    tool.panel.ui.removeRadioButton.checked = True
    tool.click((19, 17, 33))
    tool.press("Return")
    assert spleen_size(case) < after
    tool.click(IN_GONE, ctrl=True)
    assert preview() == ("added",)
    tool.press("Escape")


def test_a_box_adds_a_missing_organ_and_is_visible_while_it_is_drawn(tool, case):
    content = case.segmentation.GetSegmentation()
    content.RemoveSegment("left_kidney")
    tool.fake.process_events(0.7)
    choose(tool.panel, "Left kidney (missing)")
    tool.panel.ui.boxRadioButton.checked = True
    z, y, x = BOXES["left_kidney"]
    middle = (z.start + z.stop) // 2
    first, last = position((middle, y.start - 1, x.start - 1)), position((middle, y.stop, x.stop))
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *first)
    tool.send("LeftButtonPressEvent", first)
    tool.send("MouseMoveEvent", last)
    assert preview() == ("box",)
    tool.send("LeftButtonReleaseEvent", last)
    tool.wait()
    assert preview() == ("added",), tool.message
    tool.press("Return")
    kidney = labels_of(case) == AMOS.by_key["left_kidney"].label
    assert kidney[BOXES["left_kidney"]].mean() > 0.7
    rows, columns = np.nonzero(kidney.any(axis=0))
    assert rows.min() >= y.start - 2 and rows.max() <= y.stop + 1
    assert columns.min() >= x.start - 2 and columns.max() <= x.stop + 1


def test_the_views_other_tools_see_no_click_while_the_tool_is_on(tool, case):
    seen = []
    interactor = tool.view.interactor()
    for event in ("LeftButtonPressEvent", "LeftButtonDoubleClickEvent", "LeftButtonReleaseEvent", "MouseMoveEvent"):
        interactor.AddObserver(event, lambda caller, event: seen.append(event))
    tool.click(IN_GONE)
    tool.click(IN_GONE, press="LeftButtonDoubleClickEvent")
    assert seen == [] and preview()
    tool.send("MouseMoveEvent", position(IN_GONE))
    tool.drag(IN_GONE, IN_SPLEEN, shift=True, wait=False)
    pan = ["LeftButtonPressEvent", "MouseMoveEvent", "LeftButtonReleaseEvent"]
    assert seen == ["MouseMoveEvent", *pan], "moving and panning work"
    tool.panel.ui.clicksButton.click()
    tool.click(IN_GONE)
    assert seen == ["MouseMoveEvent", *pan, "LeftButtonPressEvent", "LeftButtonReleaseEvent"]


def test_views_of_another_layout_take_clicks_too(tool, case):
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    tool.fake.process_events(0.1)
    tool.click(IN_GONE)
    assert preview() == ("added",)
    tool.press("Escape")


def test_keys_belong_to_the_tool_only_while_it_is_on(panel, tool, case):
    editor = panel.correctPanel.ui.segmentEditor
    assert all(each.enabled for each in tool.panel.shortcuts.values()) and editor._state.shortcuts is None
    tool.panel.ui.clicksButton.click()
    assert not any(each.enabled for each in tool.panel.shortcuts.values()) and editor._state.shortcuts is not None
    tool.panel.ui.clicksButton.click()
    editor.setActiveEffectByName("Paint")
    assert not tool.panel.ui.clicksButton.checked, "an effect of the Segment Editor needs the mouse"
    assert editor.activeEffect() == "Paint"
    tool.panel.ui.clicksButton.click()
    assert editor.activeEffect() is None


def test_turning_off_leaving_or_closing_drops_the_preview_and_leaves_no_file(panel, tool, case, fake_slicer):
    before = labels_of(case)
    for leave in (
        tool.panel.ui.clicksButton.click,
        lambda: setattr(panel.ui.correctSection, "collapsed", True),
        panel.exit,
    ):
        panel.enter()
        panel.ui.correctSection.collapsed = False
        tool.panel.ui.clicksButton.checked = True
        tool.click(IN_GONE)
        assert preview()
        leave()
        assert preview() == () and temporary_files() == [] and not tool.panel.ui.clicksButton.checked
    np.testing.assert_array_equal(labels_of(case), before)
    panel.enter()
    tool.panel.ui.clicksButton.checked = True
    slicer.mrmlScene.Clear(0)
    fake_slicer.process_events()
    assert temporary_files() == [] and not tool.panel.widget.visible


def test_a_missing_organ_and_a_new_segment_get_their_segment_with_the_first_kept_click(tool, case):
    content = case.segmentation.GetSegmentation()
    content.RemoveSegment("left_kidney")
    tool.fake.process_events(0.7)
    kidney = (8, 25, 27)
    for name, segment_id in (("Left kidney (missing)", "left_kidney"), ("New segment", None)):
        choose(tool.panel, name)
        tool.click(kidney)
        assert content.GetNumberOfSegments() == 3
        tool.press("Return")
        assert content.GetNumberOfSegments() == 4
        chosen = tool.panel._target.segment_id
        assert segment_id in (None, chosen)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(case.segmentation, chosen, case.ct)
        assert mask[BOXES["left_kidney"]].mean() > 0.6
        tool.press("Ctrl+Z")
        assert content.GetNumberOfSegments() == 3


def test_the_key_o_takes_the_segment_under_the_mouse(tool, case):
    crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
    for index, name in ((IN_LIVER, "Liver"), (IN_SPLEEN, "Spleen"), (IN_FAT, "Spleen")):
        crosshair.SetCursorPositionRAS(position(index))
        tool.press("O")
        assert tool.panel.ui.clickTargetSelector.currentText == name


def test_a_finding_is_fixed_from_the_review(panel, case, fake_slicer):
    panel.ui.correctSection.collapsed = True
    panel.ui.reviewSection.collapsed = False
    fake_slicer.process_events()
    panel.reviewPanel.goTo(2)
    panel.reviewPanel.ui.fixButton.click()
    tool = Tool(panel.clickPanel, fake_slicer)
    assert not panel.ui.correctSection.collapsed and tool.panel.ui.clickTargetSelector.currentText == "Right kidney"
    tool.click((4, 23, 9), ctrl=True)
    tool.press("Return")
    fake_slicer.process_events(0.7)
    assert panel.reviewPanel._state.status(3) == "corrected"
    # Correcting its only finding completes the organ, but the user has not accepted it.
    assert status_of(case, "right_kidney") == "completed"
    tool.click((4, 23, 9))
    assert "accepted" not in tool.message


def test_edits_by_other_tools_are_followed(tool, case):
    tool.click(IN_GONE)
    paint(case, "liver", (slice(8, 9), slice(6, 8), slice(4, 6)), 0)
    before = labels_of(case)
    tool.press("Return")
    assert "edited meanwhile" in tool.message and preview() == ()
    np.testing.assert_array_equal(labels_of(case), before)
    tool.click(IN_GONE)
    tool.press("Return")
    after = labels_of(case)
    assert (after == SPLEEN)[GONE].mean() > FILLED
    np.testing.assert_array_equal(after == LIVER, before == LIVER)


def test_surfaces_follow_kept_clicks(panel, tool, case, fake_slicer):
    case.segmentation.CreateClosedSurfaceRepresentation()
    surface = case.segmentation.GetSegmentation().GetSegment("spleen").GetRepresentation("Closed surface")
    height = surface.GetBounds()[2:4]
    tool.click(IN_GONE)
    tool.press("Return")
    fake_slicer.process_events(1.0)
    surface = case.segmentation.GetSegmentation().GetSegment("spleen").GetRepresentation("Closed surface")
    assert surface.GetBounds()[2] < height[0] - 20


def test_a_case_under_a_transform_and_an_old_result_are_corrected(panel, case, fake_slicer):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 30.0)
    transform.SetMatrixTransformToParent(matrix)
    for node in (case.ct, case.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    # Results of early versions state neither model nor checksum.
    case.segmentation.RemoveAttribute("DCASegmentation.origin")
    panel.clickPanel.ui.clicksButton.click()
    choose(panel.clickPanel, "Spleen")
    tool = Tool(panel.clickPanel, fake_slicer)
    tool.wait()
    right, anterior, superior = position(IN_GONE)
    panel.clickPanel._onStroke(((right + 30.0, anterior, superior),), False)
    tool.wait()
    assert preview() == ("added",)
    tool.press("Return")
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(case.segmentation, "spleen", case.ct)
    assert mask[GONE].mean() > FILLED


def accepted(tool, case):
    accept(case, "spleen")
    tool.click(IN_GONE)


def accepted_neighbor(tool, case):
    accept(case, "liver")
    tool.click(IN_LIVER)


def absent(tool, case):
    from DCASegmentationLib.scene.finding_status import mark_organ

    mark_organ(case, "bladder", True)
    choose(tool.panel, "Bladder (missing)")
    tool.click(IN_FAT)


def contradiction(tool, case):
    tool.click(IN_GONE)
    tool.press("Return")
    tool.click(IN_GONE, ctrl=True)


def changed_ct(tool, case):
    slicer.util.arrayFromVolume(case.ct)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(case.ct)
    tool.click(IN_GONE)


def without_mask(tool, case):
    choose(tool.panel, "Bladder (missing)")
    tool.click(IN_FAT, ctrl=True)


def other_grid(tool, case):
    image = case.segmentation.GetSegmentation().GetSegment("liver").GetRepresentation("Binary labelmap")
    image.SetSpacing(5.5, 6.0, 8.0)
    image.Modified()
    tool.click(IN_GONE)


def other_transform(tool, case):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    case.segmentation.SetAndObserveTransformNodeID(transform.GetID())
    tool.click(IN_GONE)


def deleted_ct(tool, case):
    slicer.mrmlScene.RemoveNode(case.ct)
    tool.panel._onStroke((position(IN_GONE),), False)
    tool.wait()


def deleted_segment(tool, case):
    target = tool.panel._target
    case.segmentation.GetSegmentation().RemoveSegment("spleen")
    tool.panel.correction.addStroke(target, (position(IN_GONE),), True)
    tool.wait()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tool, case: tool.panel._onStroke(((900.0, 0.0, 0.0),), False), "lies outside the CT"),
        (lambda tool, case: tool.click((16, 0, 20)), "lies in air"),
        (accepted, "Spleen is accepted"),
        (accepted_neighbor, "lies in the Liver, which is locked or accepted"),
        (absent, "Bladder is accepted"),
        (contradiction, "contradicts an earlier one"),
        (changed_ct, "its voxels have changed"),
        (without_mask, "There is no Bladder near this point"),
        (other_grid, "is not on the voxel grid of the CT"),
        (other_transform, "under different transforms"),
        (deleted_ct, "no longer in the scene"),
        (deleted_segment, "was deleted"),
    ],
    ids=[
        *("outside", "air", "accepted", "accepted neighbor", "absent", "contradiction", "changed CT", "no mask"),
        *("other grid", "transform", "deleted CT", "deleted segment"),
    ],
)
def test_bad_input_is_refused_in_a_clear_line_and_nothing_changes(tool, case, spoil, said):
    tool.wait()
    images = []

    def voxels():
        return [
            slicer.util.arrayFromSegmentInternalBinaryLabelmap(case.segmentation, each).copy()
            for each in case.segmentation.GetSegmentation().GetSegmentIDs()
        ]

    if said != "contradicts an earlier one" and said != "was deleted":
        images = voxels()
    spoil(tool, case)
    tool.wait()
    assert said in tool.message and preview() == ()
    for before, after in zip(images, voxels() if images else [], strict=True):
        np.testing.assert_array_equal(after, before)


def test_an_accepted_organ_can_be_corrected_once_it_is_no_longer_accepted(tool, case):
    accept(case, "spleen")
    tool.click(IN_GONE)
    assert "is accepted" in tool.message
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(case.segmentation.GetSegmentation().GetSegment("spleen"), logic.InProgress)
    tool.click(IN_GONE)
    assert preview() == ("added",)


def test_a_worker_that_was_killed_is_replaced_at_the_next_click(panel, tool, case):
    import os
    import signal

    tool.click(IN_GONE)
    tool.press("Return")
    os.kill(panel.logic.workerPid, signal.SIGKILL)
    tool.click((19, 17, 33), ctrl=True)
    assert preview(), tool.message
    tool.press("Return")
    assert (labels_of(case) == SPLEEN)[GONE].mean() > FILLED


def test_the_window_never_waits_for_a_click(tool, case):
    import time

    tool.wait()
    start = time.perf_counter()
    tool.click(IN_GONE, wait=False)
    assert time.perf_counter() - start < 0.3 and preview() == ()
    tool.wait()
    assert preview() == ("added",)


def test_clicks_are_refused_while_a_ct_is_segmented(panel, tool, case):
    tool.wait()
    apply(panel)
    tool.panel.fix("spleen")
    before = labels_of(case)
    tool.click(IN_GONE, wait=False)
    assert "is being segmented" in tool.message and not tool.panel.correction.isWaiting and preview() == ()
    np.testing.assert_array_equal(labels_of(case), before)
    tool.fake.wait_for(lambda: not panel.logic.isRunning, 300)


def test_the_result_of_the_shipped_model_is_corrected(panel, fake_slicer, coarse_phantom, monkeypatch):
    import SimpleITK as sitk

    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.volumes import show_ct

    monkeypatch.delenv("DCA_MODELS")
    panel.enter()
    image = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    panel.parameters.inputVolume = show_ct(image, "Synthetic CT")
    apply(panel)
    fake_slicer.wait_for(lambda: not panel.logic.isRunning, 600)
    fake_slicer.process_events(0.5)
    nodes = read_case_nodes(panel.parameters.resultSegmentation)
    assert nodes is not None, message(panel)
    panel.ui.correctSection.collapsed = False
    tool = Tool(panel.clickPanel, fake_slicer)
    tool.panel.fix("liver")
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", nodes.ct)
    inside = np.argwhere(mask > 0)
    z, y, x = (int(each) for each in inside[len(inside) // 2])
    a, b, c = image.TransformIndexToPhysicalPoint((x, y, z))
    tool.panel._onStroke(((-a, -b, c),), True)
    tool.wait()
    assert preview() == ("removed",) and "Liver: \N{MINUS SIGN}" in tool.message
    tool.press("Return")
    after = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", nodes.ct)
    assert not after[z, y, x] and after.sum() < mask.sum()


def test_label_array_is_the_case_of_these_tests():
    assert (label_array()[GONE] == SPLEEN).all()
