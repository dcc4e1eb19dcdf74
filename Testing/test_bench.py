"""The bench itself: a scene, Qt by PythonQt's rules, and stand-ins that behave as Slicer's widgets were seen to."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.scene


def test_loading_every_ui_file_of_the_module(slicer_bench):
    import slicer
    from bench.bench import MODULE_FILE

    files = sorted((MODULE_FILE.parent / "Resources" / "UI").glob("*.ui"))
    assert files
    for file in files:
        widget = slicer.util.loadUI(str(file))
        widget.setMRMLScene(slicer.mrmlScene)
        assert vars(slicer.util.childWidgetVariables(widget))
