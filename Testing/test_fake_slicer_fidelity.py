"""The fake Slicer is as strict as Slicer: it rejects members that the real classes lack, in .ui files and in code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.scene

ROOT = Path(__file__).parents[1]
UI_FILES = sorted((ROOT / "DCASegmentation" / "Resources" / "UI").glob("*.ui"))
PANELS = [
    ROOT / "DCASegmentation" / "DCASegmentation.py",
    *sorted((ROOT / "DCASegmentation" / "DCASegmentationLib" / "widgets").glob("*.py")),
]
ALL_CLASSES = ROOT.parent / "shared" / "reference" / "slicer-widget-api.json"
# Added by a PythonQt decorator of the application, so not declared in headers as scripts see it.
DECORATED = {("qSlicerApplication", "testingEnabled")}
WIDGET = '<widget class="{0}" name="tested">{1}</widget>'
CONNECTION = """<connections><connection><sender>top</sender><signal>{0}</signal>
<receiver>tested</receiver><slot>{1}</slot></connection></connections>"""


def test_stand_ins_have_only_members_of_the_real_classes(fake_slicer):
    from fake_slicer import application, ctk_widgets, manifest
    from fake_slicer.qt_modules import stand_ins_of

    classes = {**fake_slicer.stand_ins, **stand_ins_of(ctk_widgets)}
    classes["qSlicerApplication"] = application.qSlicerApplication
    assert len(classes) > 10
    additions = [
        (name, member)
        for name, cls in classes.items()
        for base in cls.__mro__
        if base.__module__.startswith("fake_slicer.")
        for member in vars(base)
        if not member.startswith("_") and not manifest.has_member(name, member)
    ]
    assert set(additions) <= DECORATED


def test_signals_of_stand_ins_have_the_signatures_of_the_real_ones(fake_slicer):
    from fake_slicer import ctk_widgets, manifest
    from fake_slicer.base import Signal
    from fake_slicer.qt_modules import stand_ins_of

    signals = [
        (name, signature)
        for name, cls in {**fake_slicer.stand_ins, **stand_ins_of(ctk_widgets)}.items()
        for member in vars(cls).values()
        if isinstance(member, Signal)
        for signature in member.signatures
    ]
    assert signals
    assert [each for each in signals if not manifest.has_signal(*each)] == []


def write_ui(folder: Path, class_name: str, contents: str = "", after: str = "") -> str:
    widget = WIDGET.format(class_name, contents)
    layout = f'<layout class="QVBoxLayout" name="topLayout"><item>{widget}</item></layout>'
    path = folder / "tested.ui"
    path.write_text(f'<ui version="4.0"><widget class="qMRMLWidget" name="top">{layout}</widget>{after}</ui>')
    return str(path)


def test_a_ui_file_with_existing_members_is_loaded(fake_slicer, tmp_path):
    import slicer

    types = '<property name="nodeTypes"><stringlist><string>vtkMRMLModelNode</string></stringlist></property>'
    connection = CONNECTION.format("mrmlSceneChanged(vtkMRMLScene*)", "setMRMLScene(vtkMRMLScene*)")
    top = slicer.util.loadUI(write_ui(tmp_path, "qMRMLNodeComboBox", types, connection))
    top.setMRMLScene(slicer.mrmlScene)
    selector = slicer.util.childWidgetVariables(top).tested
    assert selector.nodeTypes == ("vtkMRMLModelNode",)
    assert selector.mrmlScene() is slicer.mrmlScene


@pytest.mark.parametrize(
    ("class_name", "contents", "after", "missing"),
    [
        ("qMRMLNoSuchWidget", "", "", "qMRMLNoSuchWidget"),
        ("QPushButton", '<property name="txet"><string>x</string></property>', "", "txet"),
        ("ctkSliderWidget", '<property name="range"><number>3</number></property>', "", "range"),
        ("qMRMLNodeComboBox", "", CONNECTION.format("sceneChanged()", "setMRMLScene(vtkMRMLScene*)"), "sceneChanged"),
        ("qMRMLNodeComboBox", "", CONNECTION.format("mrmlSceneChanged(vtkMRMLScene*)", "setScene()"), "setScene"),
    ],
)
def test_a_ui_file_with_members_that_the_real_class_lacks_is_rejected(
    fake_slicer, tmp_path, class_name, contents, after, missing
):
    import slicer

    from fake_slicer.pythonqt import FakeSlicerError

    with pytest.raises(FakeSlicerError, match=missing):
        slicer.util.loadUI(write_ui(tmp_path, class_name, contents, after))
    fake_slicer.log.clear()  # Qt logs it too


def test_connecting_a_missing_signal_is_rejected(fake_slicer):
    import qt
    import slicer

    from fake_slicer.pythonqt import FakeSlicerError

    with pytest.raises(FakeSlicerError, match=r"QPushButton has no signal pressed\(int\)"):
        qt.QPushButton().connect("pressed(int)", print)
    with pytest.raises(FakeSlicerError, match=r"qMRMLNodeComboBox has no signal currentNodeChanged\(int\)"):
        slicer.qMRMLNodeComboBox().connect("currentNodeChanged(int)", print)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("self.ui.goButton.txet = 'Go'", "has no txet"),
        ("self.ui.goButton.click = 3", "no property click to set"),
        ("self.ui.goButton.text()", "text of goButton, a QPushButton, is a property"),
        ("self.ui.selector.nodeTypes()", "nodeTypes of selector, a qMRMLNodeComboBox, is a property"),
        ("self.ui.selector.connect('nodeChanged()', print)", r"no signal nodeChanged\(\)"),
        ("self.ui.goButon.text = 'Go'", "no .ui file contains goButon"),
        ("box = self.ui.selector; box.setNode(None)", "has no setNode"),
        ("qt.QPushButton(text='Go')", "no keyword arguments"),
        ("qt.QApplication.clipboard()", "qt.QApplication has no clipboard"),
        ("qt.QTimer.singleShoot(0, print)", "qt.QTimer has no singleShoot"),
        ("qt.QNoSuchThing()", "qt.QNoSuchThing is not in qt_members.json"),
        ("cell = qt.QTableWidgetItem(); cell.setTextAlign(0)", "a QTableWidgetItem, has no setTextAlign"),
        ("self._timer = qt.QTimer(); self._timer.active()", "active of self._timer, a QTimer, is a property"),
    ],
)
def test_the_lint_finds(fake_slicer, line, problem):
    from fake_slicer.lint import find_problems

    objects = {"goButton": "QPushButton", "selector": "qMRMLNodeComboBox"}
    source = f"class Panel:\n    def fill(self):\n        {line}\n"
    assert len(found := find_problems(source, objects)) == 1
    assert re.search(problem, found[0])


def test_the_lint_accepts_existing_members(fake_slicer):
    from fake_slicer.lint import find_problems

    source = """
def fill(self):
    self.ui.goButton.text = "Go"
    self.ui.goButton.connect("clicked(bool)", print)
    box = self.ui.selector
    box.setCurrentNode(box.currentNode())
    box.connect("currentNodeChanged(vtkMRMLNode*)", print)
    cell = qt.QTableWidgetItem(qt.QInputDialog.getText(self.ui.goButton, "a", "b"))
    cell.setFlags(qt.Qt.ItemIsEnabled)
    self._process = qt.QProcess()
    self._process.connect("readyRead()", print)
    self._process.start("a", [])
    return box.nodeTypes, self.ui.goButton.checked
"""
    assert find_problems(source, {"goButton": "QPushButton", "selector": "qMRMLNodeComboBox"}) == []


@pytest.mark.parametrize("path", UI_FILES, ids=lambda path: path.name)
def test_every_ui_file_of_the_module_is_accepted(fake_slicer, path):
    import slicer

    widget = slicer.util.loadUI(str(path))
    widget.setMRMLScene(slicer.mrmlScene)
    assert vars(slicer.util.childWidgetVariables(widget))


@pytest.mark.parametrize("path", PANELS, ids=lambda path: path.name)
def test_the_module_uses_only_existing_members_of_its_widgets(fake_slicer, path):
    from fake_slicer.lint import find_problems, named_objects

    assert find_problems(path.read_text(encoding="utf-8"), named_objects(UI_FILES)) == []


@pytest.mark.skipif(not ALL_CLASSES.exists(), reason="the members of all classes are not on this computer")
def test_the_manifest_matches_the_headers(fake_slicer):
    from fake_slicer import manifest
    from fake_slicer.make_manifest import USED, pick

    assert pick(json.loads(ALL_CLASSES.read_text(encoding="utf-8")), USED) == manifest.classes()
