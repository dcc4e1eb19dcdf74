"""The fake Slicer's parameter node wrapper behaves as Slicer's own.

The same tests pass with Slicer's package: set DCA_SLICER_SOURCE to a checkout of Slicer.
"""

from __future__ import annotations

import enum
import pathlib
from typing import Annotated

import pytest

pytestmark = pytest.mark.scene


class Mode(enum.Enum):
    """An Enum for a combo box."""

    First = "one"
    Second = "two"


@pytest.fixture
def wrap(fake_slicer):
    """Creates a wrapper for a parameter node in the scene, always for the same node."""
    import slicer
    from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper

    annotations = {
        "ct": slicer.vtkMRMLScalarVolumeNode,
        "threshold": Annotated[float, WithinRange(0, 1)],
        "mode": Mode,
        "flag": bool,
        "count": Annotated[int, Default(4)],
        "name": str,
        "folder": pathlib.Path,
    }
    wrapper = parameterNodeWrapper(type("Parameters", (), {"__annotations__": annotations, "threshold": 0.25}))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    return lambda: wrapper(node)


def test_missing_parameters_get_their_defaults(wrap):
    parameters = wrap()
    assert (parameters.ct, parameters.threshold, parameters.mode, parameters.flag) == (None, 0.25, Mode.First, False)
    assert (parameters.count, parameters.name, parameters.folder) == (4, "", pathlib.Path())


def test_values_are_kept_in_the_node_and_references_survive_renaming(wrap):
    import slicer

    ct = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    parameters = wrap()
    parameters.ct, parameters.threshold, parameters.mode, parameters.flag = ct, 0.5, Mode.Second, True
    ct.SetName("renamed")
    again = wrap()
    assert (again.ct, again.threshold, again.mode, again.flag) == (ct, 0.5, Mode.Second, True)
    assert again.parameterNode.GetParameter("mode") == "Second"


def test_values_out_of_range_or_of_the_wrong_type_are_rejected(wrap):
    import slicer

    parameters = wrap()
    with pytest.raises(ValueError, match=r"Value must be within range \[0, 1\], is 2"):
        parameters.threshold = 2
    with pytest.raises(TypeError):
        parameters.ct = slicer.vtkMRMLModelNode()
    with pytest.raises(TypeError):
        parameters.count = "many"
    assert parameters.threshold == 0.25


def test_widgets_and_parameters_follow_each_other(wrap):
    import ctk
    import qt
    import slicer

    parameters = wrap()
    slider, box, check = ctk.ctkSliderWidget(), qt.QComboBox(), qt.QCheckBox()
    selector = slicer.qMRMLNodeComboBox()
    selector.noneEnabled = True
    selector.setMRMLScene(slicer.mrmlScene)
    tag = parameters.connectParametersToGui({"threshold": slider, "mode": box, "flag": check, "ct": selector})
    assert (slider.minimum, slider.maximum, slider.value) == (0, 1, 0.25)
    assert [box.itemText(index) for index in range(box.count)] == ["First", "Second"]
    assert selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)

    ct = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters.ct, parameters.flag = ct, True
    assert (selector.currentNode(), check.checked) == (ct, True)
    slider.value, box.currentIndex = 0.75, 1
    assert (parameters.threshold, parameters.mode) == (0.75, Mode.Second)

    parameters.disconnectGui(tag)
    slider.value = 0.1
    parameters.flag = False
    assert (parameters.threshold, check.checked) == (0.75, True)


def test_widgets_of_a_panel_are_found_by_their_dynamic_property(wrap):
    import qt

    panel = qt.QWidget()
    check = qt.QCheckBox(panel)
    check.setProperty("SlicerParameterName", "flag")
    parameters = wrap()
    parameters.connectGui(panel)
    check.checked = True
    assert parameters.flag


@pytest.mark.parametrize(("class_name", "parameter"), [("QPlainTextEdit", "name"), ("QSpinBox", "threshold")])
def test_pairs_of_widget_and_type_that_slicer_does_not_bind_are_rejected(wrap, class_name, parameter):
    import qt

    with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
        wrap().connectParametersToGui({parameter: getattr(qt, class_name)()})


def test_a_name_of_the_wrapper_cannot_be_a_parameter(fake_slicer):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(ValueError, match="reserved name 'default'"):
        parameterNodeWrapper(type("Parameters", (), {"__annotations__": {"default": str}}))
