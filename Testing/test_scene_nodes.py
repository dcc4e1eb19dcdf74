"""Volumes, segments, maps, and legends in a MRML scene."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.organs import AMOS, SYNAPSE, VOCABULARIES
from dcaseg.rendering.planes import SCREEN_AXES
from scene_case import BOXES, SyntheticResult, in_wide_air, small_ct, small_labels, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene


@pytest.fixture(autouse=True)
def an_empty_scene():
    from DCASegmentationLib.scene.headless import boot

    boot()
    slicer.mrmlScene.Clear(False)
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(False)


@pytest.fixture
def ct_node():
    from DCASegmentationLib.scene.volumes import show_ct

    return show_ct(small_ct(), "CT")


@pytest.fixture
def segmentation(ct_node):
    from DCASegmentationLib.scene.segmentation import show_segmentation

    return show_segmentation(small_labels(), AMOS, ct_node, "Organs")


def test_booting_twice_keeps_the_scene():
    from DCASegmentationLib.scene.headless import boot

    before = slicer.mrmlScene
    boot()
    assert slicer.mrmlScene is before


def test_in_slicer_boot_does_nothing(monkeypatch):
    from DCASegmentationLib.scene.headless import boot

    scene_of_slicer, modules_of_slicer = slicer.vtkMRMLScene(), object()
    monkeypatch.setattr(slicer, "mrmlScene", scene_of_slicer)
    monkeypatch.setattr(slicer, "modules", modules_of_slicer)
    boot()
    assert slicer.mrmlScene is scene_of_slicer
    assert slicer.modules is modules_of_slicer


def test_the_scene_imports_neither_torch_nor_the_command_line_nor_matplotlib():
    program = """
import sys
from DCASegmentationLib.scene import offscreen, scene_builder
loaded = {"torch", "monai", "typer", "rich", "matplotlib"} & set(sys.modules)
raise SystemExit(", ".join(sorted(loaded)))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.stderr.strip() == ""


def test_an_oblique_ct_has_exactly_its_grid(ct_node):
    from DCASegmentationLib.scene.volumes import convert_to_sitk

    ct, back = small_ct(), convert_to_sitk(ct_node)
    assert back.GetSize() == ct.GetSize()
    assert back.GetSpacing() == ct.GetSpacing()
    assert back.GetOrigin() == ct.GetOrigin()
    assert back.GetDirection() == ct.GetDirection()
    assert np.array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(ct))


def test_a_voxel_of_the_ct_has_the_same_position_as_in_the_image(ct_node):
    from DCASegmentationLib.scene.volumes import get_ijk_to_ras

    left, posterior, superior = small_ct().TransformIndexToPhysicalPoint((7, 11, 5))
    assert get_ijk_to_ras(ct_node).MultiplyPoint((7, 11, 5, 1))[:3] == pytest.approx((-left, -posterior, superior))


def test_every_organ_present_becomes_a_segment_with_its_voxels(segmentation, ct_node):
    labels = sitk.GetArrayFromImage(small_labels())
    assert set(segmentation.GetSegmentation().GetSegmentIDs()) == set(BOXES)
    for key in BOXES:
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, key, ct_node)
        assert np.array_equal(voxels > 0, labels == AMOS.by_key[key].label)


def test_segments_have_the_name_and_color_of_the_organ(segmentation):
    liver = segmentation.GetSegmentation().GetSegment("liver")
    assert liver.GetName() == "Liver"
    assert liver.GetColor() == pytest.approx([channel / 255 for channel in AMOS.by_key["liver"].color])


def test_a_kidney_is_tagged_with_its_snomed_code_and_side(segmentation):
    entry = _terminology(segmentation, "left_kidney").split("~")
    assert entry[1] == "SCT^123037004^Anatomical Structure"
    assert entry[2] == "SCT^64033007^Kidney"
    assert entry[3] == "SCT^7771000^Left"


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_slicer_reads_the_terminology_of_every_organ_as_written(vocabulary):
    """Slicer's own parser of these entries is in its color nodes."""
    from DCASegmentationLib.scene.segmentation import serialize_terminology_entry

    for organ in vocabulary:
        colors = slicer.vtkMRMLColorTableNode()
        colors.SetTypeToUser()
        colors.SetNumberOfColors(1)
        assert colors.SetTerminologyFromString(0, serialize_terminology_entry(organ))
        assert colors.GetTerminologyCategory(0).GetCodeValue() == "123037004"
        assert colors.GetTerminologyType(0).GetCodeValue() == organ.code.value
        modifier = colors.GetTerminologyTypeModifier(0)
        side = modifier.GetCodeValue() if modifier else None
        assert (side or None) == (organ.side.value if organ.side else None)


def test_segments_meet_the_requirements_of_slicers_dicom_seg_export(segmentation):
    import vtk

    content = segmentation.GetSegmentation()
    for segment_id in content.GetSegmentIDs():
        segment = content.GetSegment(segment_id)
        voxels = segment.GetRepresentation("Binary labelmap").GetPointData().GetArray("ImageScalars")
        assert voxels is not None and voxels.GetValueRange() != (0, 0), "would be treated as an empty segment"
        found = vtk.reference("")
        assert segment.GetTag("DICOM.SegmentAlgorithmType", found) and found == "AUTOMATIC"
        assert segment.GetTag("DICOM.SegmentAlgorithmName", found) and found


def test_the_ct_is_source_and_reference_geometry_of_the_segmentation(segmentation, ct_node):
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    assert segmentation.GetNodeReference(role) is ct_node
    reference = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    geometry = slicer.vtkOrientedImageData()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(
        segmentation.GetSegmentation().GetConversionParameter(reference), geometry, False
    )
    assert geometry.GetDimensions() == ct_node.GetImageData().GetDimensions()
    assert geometry.GetSpacing() == pytest.approx(ct_node.GetSpacing(), abs=1e-12)


def test_labels_of_another_size_are_rejected(ct_node):
    from DCASegmentationLib.scene.segmentation import show_segmentation

    with pytest.raises(ValueError, match="the label map has size"):
        show_segmentation(small_labels()[:-1], AMOS, ct_node, "Organs")


def test_labels_outside_the_vocabulary_are_rejected(ct_node):
    from DCASegmentationLib.scene.segmentation import show_segmentation

    labels = sitk.GetArrayFromImage(small_labels())
    labels[0, 0, 0] = 14
    with pytest.raises(ValueError, match=r"\[14\] are not in the vocabulary Synapse"):
        show_segmentation(labels, SYNAPSE, ct_node, "Organs")


def test_attention_is_shown_from_zero_to_one_and_zero_is_hidden():
    from DCASegmentationLib.scene.maps import show_attention

    nodes = show_attention(small_result().attention[4], level=4)
    assert list(nodes) == ["head", "medium", "tail"]
    display = nodes["head"].GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 1.0)
    assert display.GetApplyThreshold()
    assert 0.0 < display.GetLowerThreshold() < 0.001, "0 is outside the body"
    assert all(node.GetHideFromEditors() for node in nodes.values()), "other modules do not list them"
    assert "head expert" in nodes["head"].GetName().lower()


@pytest.mark.parametrize("name", ["Viridis", "Inferno"])
def test_the_color_maps_get_steadily_brighter(name):
    from DCASegmentationLib.scene.maps import get_scale_colors

    table = get_scale_colors(name)
    colors = np.zeros((table.GetNumberOfColors(), 4))
    for index in range(len(colors)):
        table.GetColor(index, colors[index])
    brightness = colors[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert np.all(np.diff(brightness[::16]) > 0)
    assert brightness[-1] - brightness[0] > 0.6


def test_maps_share_color_nodes():
    from DCASegmentationLib.scene.maps import show_attention

    nodes = show_attention(small_result().attention[4], level=4)
    assert len({node.GetDisplayNode().GetColorNodeID() for node in nodes.values()}) == 1


def test_a_map_has_a_legend_titled_in_words():
    from DCASegmentationLib.scene.maps import show_attention

    node = show_attention(small_result().attention[4], level=4)["tail"]
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    assert legend.GetTitleText() == "Attention: small"


def test_the_dominant_expert_map_names_its_colors():
    from DCASegmentationLib.scene.maps import show_dominant_expert

    node = show_dominant_expert(small_result().dominant_expert)
    colors = node.GetDisplayNode().GetColorNode()
    names = [colors.GetColorName(index) for index in range(4)]
    assert names == ["background", "large organs", "medium organs", "small organs"]
    assert colors.GetLookupTable().GetTableValue(0)[3] == 0.0


def test_a_case_is_in_one_folder_with_the_ct_in_the_standard_views():
    from DCASegmentationLib.scene.scene_builder import build_scene

    nodes = build_scene(small_ct(), small_result(), AMOS, name="Case 7")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folders = {hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n))) for n in nodes.all()}
    assert folders == {"Case 7"}
    for view in ("Red", "Green", "Yellow"):
        composite = slicer.mrmlScene.GetSingletonNode(view, "vtkMRMLSliceCompositeNode")
        assert composite.GetBackgroundVolumeID() == nodes.ct.GetID()


def test_the_maps_of_a_case_are_empty_in_the_air_around_the_body():
    from DCASegmentationLib.scene.scene_builder import build_scene

    small = small_result()
    maps = {name: in_wide_air(image, 0.1) for name, image in small.attention[4].items()}
    result = SyntheticResult(in_wide_air(small.labels, 0), {4: maps}, entropy=in_wide_air(small.entropy, 0.5))
    nodes = build_scene(in_wide_air(small_ct(), -1000), result, AMOS)
    voxels, labels = slicer.util.arrayFromVolume(nodes.ct), sitk.GetArrayViewFromImage(result.labels)
    for node in (*nodes.attention[4].values(), nodes.entropy):
        values = slicer.util.arrayFromVolume(node)
        assert not values[voxels < -300].any(), node.GetName()
        assert (values[labels > 0] > 0).all(), node.GetName()


def _terminology(segmentation, key: str) -> str:
    segment = segmentation.GetSegmentation().GetSegment(key)
    return segment.GetTerminology() if hasattr(segment, "GetTerminology") else segment.GetTag("TerminologyEntry")


@pytest.mark.parametrize("view", ["Axial", "Sagittal", "Coronal"])
def test_slices_are_oriented_as_in_slicers_own_presets(view):
    node = slicer.vtkMRMLSliceNode()
    slicer.mrmlScene.AddNode(node)
    preset = slicer.mrmlScene.GetDefaultNodeByClass("vtkMRMLSliceNode").GetSliceOrientationPreset(view)
    axes = SCREEN_AXES[view.lower()]
    assert [[preset.GetElement(row, column) for column in range(3)] for row in range(3)] == axes.tolist()


def test_map_folders_are_removed_when_their_process_has_ended_and_not_by_age(tmp_path):
    """A session may be open for days, and a clock may jump."""
    from dcaseg.temp_paths import own_prefix
    from DCASegmentationLib.scene.maps import remove_unused_folders

    program = """
        import sys
        from dcaseg.temp_paths import own_prefix
        print(own_prefix("DCASegmentation-maps-"), flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        folder = tmp_path / f"{other.stdout.readline().strip()}x"
        own = tmp_path / f"{own_prefix('DCASegmentation-maps-')}x"
        for each in (folder, own):
            each.mkdir()
            os.utime(each, (0, 0))
        remove_unused_folders(tmp_path)
        assert list(tmp_path.iterdir()) == [folder], "its process still runs"
        other.stdin.close()
    os.utime(folder, (2**32, 2**32))
    remove_unused_folders(tmp_path)
    assert not list(tmp_path.iterdir())
