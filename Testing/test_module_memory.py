"""Memory stays flat over many runs: neither nodes nor objects of the module are left behind by a run.

Slicer's own memory cannot be measured here. What grew in a real Slicer were nodes and objects that something kept
alive, so these are counted.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from typing import Any

import pytest

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model", "warm_worker")]
slicer = pytest.importorskip("slicer")

from DCASegmentationLib.scene.nodes import remove_nodes
from module_driving import add_ct, apply, message, temporary_files, wait_for_end

# Packages whose objects are counted, and VTK's classes, wherever their Python wrapper is alive.
COUNTED = ("DCASegmentationLib", "dcaseg", "fake_slicer", "PySide6", "vtkmodules", "slicer", "mrml")


def volumes() -> list[str]:
    """The names of the volumes in the scene, and of the nodes that display volumes."""
    classes = ("vtkMRMLVolumeNode", "vtkMRMLVolumeDisplayNode")
    return [node.GetName() for name in classes for node in slicer.util.getNodesByClass(name)]


def nodes_and_items() -> Counter[str]:
    """The nodes of the scene by class, and the items of the subject hierarchy."""
    scene = slicer.mrmlScene
    found = Counter(scene.GetNthNode(index).GetClassName() for index in range(scene.GetNumberOfNodes()))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    found["items of the subject hierarchy"] = hierarchy.GetNumberOfItems() if hierarchy else 0
    return found


def objects() -> Counter[str]:
    """The objects, and the functions and methods that something may hold, of the counted packages, by name."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        if kind.__name__ in ("function", "method"):
            if (each.__module__ or "").split(".")[0] == "DCASegmentationLib":
                found[f"{kind.__name__} {each.__qualname__}"] += 1
        # Some classes of VTK's wrappers have no module name of their own.
        elif str(kind.__module__).split(".")[0] in COUNTED or kind.__name__.startswith("vtk"):
            found[kind.__name__] += 1
    return found


def delete_the_result(panel: Any) -> None:
    slicer.mrmlScene.RemoveNode(panel.parameters.resultSegmentation)
    # Slicer leaves a volume's display nodes in the scene; the Data module removes them after the volume. In the other
    # order, a slice view that still shows the volume may create a new one.
    remove_nodes([panel.parameters.inputVolume])


def close_the_scene(panel: Any) -> None:
    slicer.mrmlScene.Clear(0)


def run_look_and_clean_up(panel: Any, fake: Any, clean_up: Any) -> None:
    """What a user does with one CT: segment it, look at experts and findings, and remove it."""
    panel.parameters.inputVolume = add_ct("CT")
    apply(panel)
    wait_for_end(panel, fake)
    fake.process_events(0.1)
    assert panel.parameters.resultSegmentation is not None, message(panel)
    panel.ui.expertsSection.collapsed = False
    fake.wait_for(lambda: panel.expertsPanel._measured == 4)
    panel.parameters.expertMap = "head"
    panel.ui.reviewSection.collapsed = False
    panel.reviewPanel.goTo(0)
    fake.process_events(0.1)
    clean_up(panel)
    # The module removes the parts of a deleted result in a later turn of the event loop.
    fake.wait_for(lambda: not volumes(), 30)
    fake.process_events(0.2)


def grown(panel: Any, fake: Any, clean_up: Any, warm_up: int, runs: int) -> tuple[Counter[str], Counter[str]]:
    """What there is more of after so many ``runs`` than after the first ``warm_up`` ones."""
    for _ in range(warm_up):
        run_look_and_clean_up(panel, fake, clean_up)
    nodes, kept = nodes_and_items(), objects()
    for _ in range(runs - warm_up):
        run_look_and_clean_up(panel, fake, clean_up)
    assert temporary_files() == []
    return nodes_and_items() - nodes, objects() - kept


@pytest.mark.parametrize("clean_up", [delete_the_result, close_the_scene])
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_grows_over_20_runs(module_panel, fake_slicer, clean_up):
    assert grown(module_panel, fake_slicer, clean_up, 3, 20) == (Counter(), Counter())


def test_a_run_leaves_nothing_behind(module_panel, fake_slicer):
    clean_ups = itertools.cycle([delete_the_result, close_the_scene])
    nodes, kept = grown(module_panel, fake_slicer, lambda panel: next(clean_ups)(panel), 2, 4)
    assert nodes == Counter() and kept == Counter()


def test_what_is_kept_alive_is_counted(module_panel, fake_slicer):
    """A callable handed to PythonQt's singleShot is kept forever, and with it all that it refers to."""
    from DCASegmentationLib.scene.case_record import CaseNodes

    before = objects()
    held = [lambda: None, CaseNodes(segmentation=None, ct=None)]
    held[0].__module__ = "DCASegmentationLib"
    more = objects() - before
    assert more["CaseNodes"] == 1 and sum(more.values()) == 2, (held, more)
