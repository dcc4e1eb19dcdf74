"""In the fake Slicer, Qt behaves like PythonQt, and Slicer's widgets behave as observed in a running Slicer."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.scene


def test_properties_are_attributes_and_not_calls(fake_slicer):
    import qt

    button = qt.QPushButton("Go")
    button.checkable = True
    button.checked = "yes"
    assert (button.text, button.checked, button.enabled) == ("Go", True, True)
    with pytest.raises(TypeError, match="'str' object is not callable"):
        button.text()


def test_cpp_objects_accept_no_new_attributes_but_python_subclasses_do(fake_slicer):
    import qt

    class Panel(qt.QWidget):
        pass

    panel = Panel()
    panel.note = "mine"
    assert panel.note == "mine"
    with pytest.raises(AttributeError, match="'txet' does not exist on QPushButton and creating new attributes on C"):
        qt.QPushButton().txet = "Go"


def test_both_ways_to_connect_work_and_receivers_may_take_fewer_arguments(fake_slicer):
    import qt

    heard = []
    box = qt.QCheckBox()
    box.connect("toggled(bool)", heard.append)
    box.connect("toggled(bool)", lambda: heard.append("nothing"))
    box.toggled.connect(lambda checked: heard.append(("signal", checked)))
    box.checked = True
    assert sorted(map(str, heard)) == ["('signal', True)", "True", "nothing"]
    box.disconnect("toggled(bool)", heard.append)
    heard.clear()
    box.checked = False
    assert False not in heard


def test_lists_are_returned_as_tuples_and_integers_are_accepted_as_enumerations(fake_slicer):
    import qt

    label = qt.QLabel()
    label.setProperty("names", ["a", "b"])
    label.alignment = 4
    assert label.property("names") == ("a", "b")
    assert label.alignment == qt.Qt.AlignHCenter


def test_a_process_accepts_text_and_returns_bytes(fake_slicer):
    import qt

    ended = []
    process = qt.QProcess()
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ended.append((code, status)))
    process.start(sys.executable, ["-c", "print(input())"])
    process.write("Ä\n")
    fake_slicer.wait_for(lambda: ended)
    assert ended == [(0, qt.QProcess.NormalExit)]
    assert process.readAllStandardOutput().data() == "Ä\n".encode()
    assert (process.processId(), process.state()) == (0, qt.QProcess.NotRunning)


def test_a_timer_has_the_property_and_the_function_single_shot(fake_slicer):
    import qt

    heard = []
    qt.QTimer.singleShot(1, lambda: heard.append("once"))
    timer = qt.QTimer()
    timer.singleShot = True
    assert timer.singleShot
    fake_slicer.wait_for(lambda: heard == ["once"])


def test_the_watch_records_when_the_event_loop_was_blocked(fake_slicer):
    import time

    import qt

    from fake_slicer.event_loop_watch import EventLoopWatch

    with EventLoopWatch() as watch:
        qt.QTimer.singleShot(20, lambda: time.sleep(0.2))
        fake_slicer.process_events(0.4)
    assert max(seconds for _moment, seconds, _own in watch.blocks) == pytest.approx(0.2, abs=0.15)


def test_settings_keep_their_type(fake_slicer):
    import slicer

    slicer.app.settings().setValue("DCA/count", 3)
    assert slicer.app.settings().value("DCA/count") == 3
    assert slicer.util.settingsValue("DCA/count", 0, int, slicer.app.settings()) == 3


def test_names_of_pyside_are_hidden(fake_slicer):
    import qt

    for name in ("Signal", "Slot", "Property"):
        assert not hasattr(qt, name)


def test_an_error_in_a_slot_is_recorded_and_the_sender_continues(fake_slicer):
    import qt

    def fail():
        raise ValueError("broken slot")

    button = qt.QPushButton()
    button.connect("clicked()", fail)
    button.click()
    assert [error.split(" (")[0] for error in fake_slicer.slot_errors] == ["ValueError: broken slot"]
    fake_slicer.slot_errors.clear()


def test_a_slot_that_lets_a_second_click_start_it_within_itself_fails(fake_slicer):
    import qt
    import slicer

    button = qt.QPushButton()
    button.connect("clicked()", slicer.app.processEvents)
    button.click()
    assert "second click" in fake_slicer.slot_errors[0]
    fake_slicer.slot_errors.clear()
    without_clicks = qt.QPushButton()
    without_clicks.connect("clicked()", lambda: slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents))
    without_clicks.click()
    slicer.app.processEvents()
    assert fake_slicer.slot_errors == []


def test_uninstall_removes_everything(_fake_slicer):
    import slicer

    from fake_slicer.fake_slicer import installed

    with installed(_fake_slicer):
        assert hasattr(slicer, "app")
        assert "qt" in sys.modules
    assert not hasattr(slicer, "app")
    assert not hasattr(slicer, "qMRMLNodeComboBox")
    assert not {"qt", "ctk", "slicer.i18n", "PyTorchUtils"} & set(sys.modules)


def test_torch_can_be_absent_until_its_extension_installs_it(fake_slicer):
    import importlib.util

    fake_slicer.torch.is_installed = False
    assert importlib.util.find_spec("torch") is None
    import PyTorchUtils

    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True)
    assert importlib.util.find_spec("torch") is not None


def test_packages_are_recorded_and_not_installed(fake_slicer):
    import importlib.util

    from slicer.packaging import pip_install

    fake_slicer.packages.hide("scipy")
    assert importlib.util.find_spec("scipy") is None
    pip_install("--no-deps scipy>=1.0", requester="Test")
    assert fake_slicer.packages.installed == ["--no-deps scipy>=1.0"]
    assert importlib.util.find_spec("scipy") is not None


def test_questions_get_the_scripted_answers_and_fail_without_one(fake_slicer):
    import qt
    import slicer

    from fake_slicer.pythonqt import FakeSlicerError

    fake_slicer.dialogs.answer(False, "chosen.zip")
    assert slicer.util.confirmOkCancelDisplay("Delete it?") is False
    assert qt.QFileDialog.getOpenFileName(None, "Add a model") == "chosen.zip"
    slicer.util.errorDisplay("No disk space", detailedText="28")
    assert fake_slicer.dialogs.texts == ["Delete it?", "Add a model", "No disk space"]
    with pytest.raises(FakeSlicerError, match="no answer"):
        slicer.util.confirmYesNoDisplay("Sure?")


def test_a_collapsed_section_hides_its_contents(fake_slicer):
    import ctk
    import qt

    section = ctk.ctkCollapsibleButton()
    section.setLayout(qt.QVBoxLayout())
    label, hidden = qt.QLabel("inside"), qt.QLabel("hidden anyway")
    section.layout().addWidget(label)
    section.layout().addWidget(hidden)
    hidden.visible = False
    section.show()
    heard = []
    section.connect("contentsCollapsed(bool)", heard.append)
    section.collapsed = True
    assert label.isHidden() and section.collapsed
    section.collapsed = False
    assert not label.isHidden() and hidden.isHidden()
    assert heard == [True, False]


def test_a_slider_keeps_its_decimals_and_its_range(fake_slicer):
    import ctk

    slider = ctk.ctkSliderWidget()
    slider.minimum, slider.maximum, slider.singleStep = 0.0, 1.0, 0.05
    heard = []
    slider.valueChanged.connect(heard.append)
    slider.value = 0.35
    slider.value = 7
    assert heard == [pytest.approx(0.35), 1.0]


def test_a_node_selector_follows_the_scene_and_selects_nothing_by_itself(fake_slicer):
    import slicer

    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.noneEnabled = True
    selector.setMRMLScene(slicer.mrmlScene)
    heard = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    ct = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    assert selector.nodeCount() == 1
    assert selector.currentNode() is None
    selector.setCurrentNode(ct)
    assert selector.currentNodeID == ct.GetID()
    slicer.mrmlScene.RemoveNode(ct)
    assert selector.currentNode() is None
    assert heard == [ct, None]


def test_the_layout_has_its_views_each_with_a_logic(fake_slicer):
    import slicer

    manager = slicer.app.layoutManager()
    assert set(manager.sliceViewNames()) == {"Red", "Green", "Yellow"}
    xml = '<layout type="horizontal"><item><view class="vtkMRMLSliceNode" singletontag="Own"/></item></layout>'
    manager.layoutLogic().GetLayoutNode().AddLayoutDescription(7399, xml)
    manager.setLayout(7399)
    assert manager.sliceViewNames() == ("Own",)
    assert manager.sliceWidget("Own").sliceLogic().GetSliceNode().GetLayoutName() == "Own"
    assert slicer.mrmlScene.GetSingletonNode("Own", "vtkMRMLSliceCompositeNode")


def test_a_widget_is_drawn_in_light_and_in_dark(fake_slicer, screenshot):
    import qt

    label = qt.QLabel("Text")
    light, dark = (qt.QImage(str(screenshot(label, style, style))) for style in ("light", "dark"))
    assert light.pixelColor(0, 0).lightness() > 200
    assert dark.pixelColor(0, 0).lightness() < 80


def test_callables_passed_to_single_shot_are_never_freed(fake_slicer):
    """Observed in Slicer: memory grew with each run that such a callable kept alive."""
    import weakref

    import qt

    class Run:
        pass

    run = Run()
    qt.QTimer.singleShot(0, lambda held=run: None)
    gone = weakref.ref(run)
    del run
    fake_slicer.process_events(0.05)
    assert gone() is not None


def test_a_new_layout_resets_its_views_in_the_next_turn(fake_slicer):
    import slicer

    views = fake_slicer.app.layoutManager()
    fake_slicer.process_events()
    views.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    node = views.sliceWidget("Red").mrmlSliceNode()
    node.SetSliceOffset(77.0)
    fake_slicer.process_events()
    assert node.GetSliceToRAS().GetElement(2, 3) != pytest.approx(77.0)


def test_the_log_reports_hidden_segmentations_and_segmentations_without_fill_and_outline(fake_slicer):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Hidden")
    node.CreateDefaultDisplayNodes()
    node.SetHideFromEditors(True)
    node.GetSegmentation().AddEmptySegment("a")
    node.GetDisplayNode().SetVisibility2DFill(False)
    assert fake_slicer.log.lines and "subject hierarchy" in fake_slicer.log.lines[0]
    fake_slicer.log.clear()
    node.GetDisplayNode().SetVisibility2DOutline(False)
    assert any("neither fill nor outline" in line for line in fake_slicer.log.lines)
    fake_slicer.log.clear()
