"""A case can be recalled from its segmentation, in this scene and in a saved one."""

from __future__ import annotations

import pytest

from dcaseg.organs import AMOS
from scene_case import small_ct, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene


@pytest.fixture
def case():
    from DCASegmentationLib.scene.headless import boot
    from DCASegmentationLib.scene.scene_builder import build_scene

    boot()
    slicer.mrmlScene.Clear(False)
    yield build_scene(small_ct(), small_result(), AMOS, name="Case")
    slicer.mrmlScene.Clear(False)


def test_a_case_is_recalled_with_all_its_nodes(case):
    from DCASegmentationLib.scene.case_record import read_case_nodes

    assert read_case_nodes(case.segmentation) == case


def test_a_segmentation_of_another_program_is_not_a_case(case):
    from DCASegmentationLib.scene.case_record import find_cases_in_scene, read_case_nodes

    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "By hand")
    assert read_case_nodes(other) is None
    assert read_case_nodes(None) is None
    assert find_cases_in_scene() == [case]


@pytest.mark.parametrize("beside_another_case", [False, True])
def test_a_saved_scene_contains_the_record(case, tmp_path, beside_another_case):
    from DCASegmentationLib.scene.case_record import find_cases_in_scene
    from DCASegmentationLib.scene.storage import save_scene_bundle

    save_scene_bundle(tmp_path / "case.mrb")
    if not beside_another_case:
        slicer.mrmlScene.Clear(False)
    assert slicer.mrmlScene.ReadFromMRB(str(tmp_path / "case.mrb"), not beside_another_case)
    loaded = find_cases_in_scene()[-1]
    assert len(find_cases_in_scene()) == 1 + beside_another_case
    assert loaded.segmentation is not case.segmentation
    assert loaded.ct.GetName() == "Case CT"
    assert [node.GetName() for node in loaded.maps()] == [
        "Head expert attention (level 4)",
        "Medium expert attention (level 4)",
        "Tail expert attention (level 4)",
        "Dominant expert",
        "Uncertainty (entropy)",
    ]
    assert all(node.GetScene() is slicer.mrmlScene and node not in case.all() for node in loaded.all())


def test_deleted_nodes_are_left_out(case):
    from DCASegmentationLib.scene.case_record import read_case_nodes

    for node in (case.ct, case.entropy, case.attention[4]["tail"]):
        slicer.mrmlScene.RemoveNode(node)
    left = read_case_nodes(case.segmentation)
    assert left.ct is None
    assert left.entropy is None
    assert list(left.attention[4]) == ["head", "medium"]
    assert case.dominant_expert in left.all()


def clone_of(segmentation):
    """A clone as Slicer's Data module makes it: with the content and the attributes, but without the references."""
    clone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Clone")
    clone.CreateDefaultDisplayNodes()
    clone.CopyContent(segmentation)
    return clone


@pytest.mark.parametrize("has_references", [False, True])
def test_a_clone_is_a_case_only_once_it_has_a_result_of_its_own(case, has_references):
    from DCASegmentationLib.scene.case_record import (
        CaseNodes,
        find_cases_in_scene,
        get_recorded_volumes,
        read_case_nodes,
        write_case_nodes,
    )

    clone = clone_of(case.segmentation)
    if has_references:
        clone.CopyReferences(case.segmentation)
    assert clone.GetAttribute("DCASegmentation.case") is not None
    assert read_case_nodes(clone) is None and find_cases_in_scene() == [case] and get_recorded_volumes(clone) == []
    write_case_nodes(CaseNodes(case.ct, clone))
    assert read_case_nodes(clone) == CaseNodes(case.ct, clone) and read_case_nodes(case.segmentation) == case


def test_a_case_of_an_earlier_version_has_no_reference_to_itself(case):
    from DCASegmentationLib.scene.case_record import read_case_nodes

    case.segmentation.SetAttribute("DCASegmentation.case", "1")
    case.segmentation.SetNodeReferenceID("DCASegmentation.self", None)
    assert read_case_nodes(case.segmentation) == case


def test_a_second_run_replaces_the_record(case):
    from DCASegmentationLib.scene.case_record import CaseNodes, read_case_nodes, write_case_nodes

    write_case_nodes(CaseNodes(case.ct, case.segmentation))
    assert read_case_nodes(case.segmentation) == CaseNodes(case.ct, case.segmentation)
