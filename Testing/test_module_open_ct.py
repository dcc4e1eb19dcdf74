"""An open CT, or one opened while the module is shown, is selected automatically; a selection is never replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = [pytest.mark.scene, pytest.mark.usefixtures("one_model")]
slicer = pytest.importorskip("slicer")

from module_driving import add_ct
from scene_case import small_ct


def add_mr(name: str = "MR") -> Any:
    """A volume with values from 0 to 800, as in MR: none below water."""
    node = add_ct(name)
    voxels = slicer.util.arrayFromVolume(node)
    slicer.util.updateVolumeFromArray(node, ((voxels - voxels.min()) * 0.4).astype(np.int16))
    return node


def add_map(name: str = "Head expert attention (level 4)") -> Any:
    from DCASegmentationLib.scene.maps import show_map

    return show_map(sitk.Cast(small_ct() > 0, sitk.sitkFloat32), name, "Attention", "Viridis")


def add_label_map() -> Any:
    from DCASegmentationLib.scene.volumes import add_volume

    return add_volume(small_ct() > 0, "Labels", "vtkMRMLLabelMapVolumeNode")


def chosen(panel: Any) -> str | None:
    node = panel.parameters.inputVolume
    assert node is panel.segmentPanel.ui.inputVolumeSelector.currentNode()
    return node.GetName() if node is not None else None


def test_a_ct_loaded_while_the_module_is_open_is_selected(module_panel, fake_slicer):
    assert chosen(module_panel) is None
    add_ct("CT")
    fake_slicer.process_events()
    assert chosen(module_panel) == "CT"
    assert module_panel.segmentPanel.ui.applyButton.enabled


def test_a_selection_is_kept_when_another_ct_is_loaded(module_panel, fake_slicer):
    add_ct("First")
    fake_slicer.process_events()
    add_ct("Second")
    fake_slicer.process_events()
    assert chosen(module_panel) == "First"
    module_panel.exit()
    module_panel.enter()
    assert chosen(module_panel) == "First"


@pytest.mark.parametrize("add", [add_mr, add_map, add_label_map])
def test_other_volumes_are_skipped_and_the_next_ct_is_selected(module_panel, fake_slicer, add):
    add()
    fake_slicer.process_events()
    assert chosen(module_panel) is None
    module_panel.exit()
    module_panel.enter()
    assert chosen(module_panel) is None
    add_ct("CT")
    fake_slicer.process_events()
    assert chosen(module_panel) == "CT"


def test_a_volume_without_voxels_is_checked_again_when_shown(module_panel, fake_slicer):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    node.CopyOrientation(add_mr())
    fake_slicer.process_events()
    assert chosen(module_panel) is None
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(small_ct()))
    node.CreateDefaultDisplayNodes()
    fake_slicer.process_events()
    assert chosen(module_panel) == "CT"


def test_the_ct_in_the_red_view_is_selected_first(module_panel, fake_slicer):
    from DCASegmentationLib.scene.view_setup import get_view_node

    module_panel.exit()
    add_ct("First")
    shown = add_ct("Shown")
    fake_slicer.process_events()
    assert chosen(module_panel) is None, "nothing is selected while the module is closed"
    get_view_node("vtkMRMLSliceCompositeNode", "Red").SetBackgroundVolumeID(shown.GetID())
    module_panel.enter()
    assert chosen(module_panel) == "Shown"


def test_after_the_ct_is_deleted_the_next_one_is_selected(module_panel, fake_slicer):
    first = add_ct("First")
    fake_slicer.process_events()
    slicer.mrmlScene.RemoveNode(first)
    add_ct("Second")
    fake_slicer.process_events()
    assert chosen(module_panel) == "Second"


def test_a_large_ct_is_checked_on_a_part_of_its_voxels(fake_slicer):
    from DCASegmentationLib.scene.ct_export import _downsample, looks_like_ct

    voxels = np.random.default_rng(0).integers(-1000, 400, (9, 300, 300), np.int16)
    node = slicer.util.addVolumeFromArray(voxels)
    node.SetSpacing(1.0, 1.0, 5.0)
    assert _downsample(node).GetSize() == (300, 300, 9) and looks_like_ct(node)
    node = slicer.util.addVolumeFromArray(np.tile(voxels, (10, 1, 1)))
    assert _downsample(node).GetNumberOfPixels() < 1_000_000 and looks_like_ct(node)
