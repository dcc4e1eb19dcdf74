"""The decisions of a review in a real scene: suggestions, corrections, statuses, and what a new run keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import vtk

from dcaseg.errors import UserError
from dcaseg.organs import AMOS

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene

from vtk.util.numpy_support import numpy_to_vtk

from DCASegmentationLib.scene import editable_area, finding_view
from DCASegmentationLib.scene.case_record import (
    find_cases_in_scene,
    lacks_label_maps,
    read_case_nodes,
    write_case_nodes,
)
from DCASegmentationLib.scene.finding_status import (
    accept_suggestion,
    compute_organ_progress,
    follow_edits,
    is_organ_reviewed,
    mark_organ,
    mark_visited,
    set_status,
    take_back,
)
from DCASegmentationLib.scene.nodes import to_world
from DCASegmentationLib.scene.organ_changes import (
    compute_finding_changes,
    compute_organ_changes,
    find_kept_organs,
    get_current_labels,
)
from DCASegmentationLib.scene.placement import follow_transforms
from DCASegmentationLib.scene.review_record import read_origin, read_review, read_state, read_suggestion
from DCASegmentationLib.scene.volumes import get_ijk_to_ras
from review_case import (
    FINDINGS,
    LIVER,
    STOMACH,
    alternative_array,
    case_alone_in_scene,
    label_array,
    labels_of,
    paint,
    review,
    segment_status,
)


@pytest.fixture
def case():
    with case_alone_in_scene() as nodes:
        yield nodes


def statuses(case):
    return {rank: read_state(case.segmentation).status(rank) for rank in FINDINGS}


def with_suggestions(*ranks):
    expected, alternative = label_array(), alternative_array()
    for rank in ranks:
        expected[FINDINGS[rank]] = alternative[FINDINGS[rank]]
    return expected


def test_a_suggestion_changes_only_its_finding(case):
    accept_suggestion(case, 1)
    np.testing.assert_array_equal(labels_of(case), with_suggestions(1))
    accept_suggestion(case, 2)
    np.testing.assert_array_equal(labels_of(case), with_suggestions(1, 2))
    assert statuses(case) == {1: "suggestion", 2: "suggestion", 3: "to_check"}
    stomach = case.segmentation.GetSegmentation().GetSegment("stomach")
    assert stomach.GetName() == "Stomach" and stomach.GetColor() == pytest.approx(
        [channel / 255 for channel in AMOS.by_label[STOMACH].color]
    )


def test_undoing_a_suggestion_restores_earlier_corrections(case):
    paint(case, "liver", (slice(18, 20), slice(6, 12), slice(4, 8)), 0)
    corrected = labels_of(case)
    accept_suggestion(case, 1)
    take_back(case, 1)
    np.testing.assert_array_equal(labels_of(case), corrected)
    assert "stomach" not in case.segmentation.GetSegmentation().GetSegmentIDs()
    assert statuses(case)[1] == "corrected"


def test_a_suggestion_does_not_change_the_users_own_segments(case):
    case.segmentation.GetSegmentation().AddEmptySegment("mine", "Mine")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        (label_array() == LIVER).astype(np.uint8), case.segmentation, "mine", case.ct
    )
    accept_suggestion(case, 1)
    mine = slicer.util.arrayFromSegmentBinaryLabelmap(case.segmentation, "mine", case.ct)
    np.testing.assert_array_equal(mine > 0, label_array() == LIVER)


def test_without_a_suggestion_nothing_can_be_accepted(case):
    with pytest.raises(UserError, match="There is no alternative"):
        accept_suggestion(case, 3)
    with pytest.raises(UserError, match="No alternative was accepted"):
        take_back(case, 1)


def test_painting_in_a_finding_marks_it_corrected_and_undoing_marks_it_to_check(case):
    box = (slice(4, 5), slice(22, 28), slice(8, 14))
    paint(case, "right_kidney", box, 0)
    assert compute_finding_changes(case) == {3: 0.5}
    assert follow_edits(case)
    assert statuses(case)[3] == "corrected"
    paint(case, "right_kidney", (slice(4, 5), slice(22, 28), slice(9, 14)), 1)
    assert not follow_edits(case), "it is a correction as long as anything of it is left"
    paint(case, "right_kidney", box, 1)
    assert follow_edits(case) and not follow_edits(case)
    assert statuses(case)[3] == "to_check"


def smooth_all(case):
    """As Smoothing (median, all segments) in the Segment Editor."""
    for segment_id in list(case.segmentation.GetSegmentation().GetSegmentIDs()):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(case.segmentation, segment_id, case.ct) > 0
        smooth = sitk.BinaryMedian(sitk.GetImageFromArray(mask.astype(np.uint8)), [1, 1, 1])
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            sitk.GetArrayFromImage(smooth), case.segmentation, segment_id, case.ct
        )


def test_a_voxel_of_a_finding_is_no_correction(case):
    paint(case, "liver", (slice(18, 19), slice(6, 7), slice(4, 5)), 0)
    assert not follow_edits(case)
    assert statuses(case)[1] == "to_check" and segment_status(case, "liver") == "Not started"


def test_smoothing_all_organs_completes_none_that_nobody_has_looked_at(case):
    smooth_all(case)
    follow_edits(case)
    assert "corrected" in statuses(case).values()
    assert not any(is_organ_reviewed(case, key) for key in ("liver", "spleen", "right_kidney"))
    assert {checked for checked, _total in compute_organ_progress(case).values()} == {0}
    for rank in FINDINGS:
        mark_visited(case, rank)
    for rank, organ in ((1, "liver"), (2, "spleen"), (3, "right_kidney")):
        assert is_organ_reviewed(case, organ) == (statuses(case)[rank] == "corrected")


def test_a_visit_is_saved_and_corrections_of_earlier_versions_count_as_visited(case):
    paint(case, "liver", FINDINGS[1], 0)
    mark_visited(case, 1)
    follow_edits(case)
    assert is_organ_reviewed(case, "liver") and read_state(case.segmentation).visited == {1}
    name = "DCASegmentation.review.state"
    saved = json.loads(case.segmentation.GetAttribute(name))
    saved.pop("visited")
    case.segmentation.SetAttribute(name, json.dumps(saved))
    assert read_state(case.segmentation).is_checked(1)


def test_following_edits_reads_the_segmentation_once(case, monkeypatch):
    from DCASegmentationLib.scene import finding_status, organ_changes

    for rank in (1, 2):
        accept_suggestion(case, rank)
    calls = []

    def counted(nodes):
        calls.append(nodes)
        return get_current_labels(nodes)

    for module in (finding_status, organ_changes):
        monkeypatch.setattr(module, "get_current_labels", counted)
    follow_edits(case)
    assert len(calls) == 1


def test_editing_an_accepted_suggestion_makes_it_a_correction(case):
    accept_suggestion(case, 1)
    paint(case, "stomach", (slice(18, 19), slice(6, 7), slice(4, 5)), 0)
    follow_edits(case)
    assert statuses(case)[1] == "corrected"


def test_the_segment_editors_undo_undoes_a_suggestion(case):
    from DCASegmentationLib.scene.editable_area import get_editor_node

    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.SetSegmentEditorNode(get_editor_node())
    logic.SetSegmentationNode(case.segmentation)
    logic.SaveStateForUndo()
    accept_suggestion(case, 1)
    logic.Undo()
    follow_edits(case)
    np.testing.assert_array_equal(labels_of(case), label_array())
    assert statuses(case)[1] == "to_check"


def test_organs_have_slicers_segment_status(case):
    assert segment_status(case, "liver") == "Not started"
    set_status(case, 1, "accepted")
    assert segment_status(case, "liver") == "Completed"
    set_status(case, 1, "flagged")
    assert segment_status(case, "liver") == "Flagged"
    set_status(case, 1, "to_check")
    assert segment_status(case, "liver") == "Not started"


def test_an_absent_organ_can_be_reviewed_too(case):
    assert not is_organ_reviewed(case, "gallbladder")
    mark_organ(case, "gallbladder", True)
    assert is_organ_reviewed(case, "gallbladder")
    mark_organ(case, "gallbladder", False)
    assert not is_organ_reviewed(case, "gallbladder")


def test_changes_are_listed_by_organ(case):
    changes = {change.organ.key: change for change in compute_organ_changes(case)}
    assert not any(change.changed for change in changes.values())
    accept_suggestion(case, 2)
    # Outside the box of the automatic result, where only the user has painted.
    paint(case, "left_kidney", (slice(0, 2), slice(0, 2), slice(0, 2)))
    changes = {change.organ.key: change for change in compute_organ_changes(case)}
    moved = 4 * 4 * 4 * 0.24
    assert {key for key, change in changes.items() if change.changed} == {"spleen", "liver", "left_kidney"}
    assert changes["spleen"].after_ml == pytest.approx(changes["spleen"].before_ml - moved)
    assert changes["liver"].added_ml == pytest.approx(moved)
    before, both = changes["spleen"].before_ml, changes["spleen"].after_ml
    assert changes["spleen"].dice == pytest.approx(2 * both / (before + both))
    assert changes["left_kidney"].added_ml == pytest.approx(8 * 0.24)


def test_overlapping_segments_count_in_full(case):
    mask = (label_array() == LIVER).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, case.segmentation, "spleen", case.ct)
    changes = {change.organ.key: change for change in compute_organ_changes(case)}
    assert changes["spleen"].after_ml == pytest.approx(changes["liver"].after_ml)
    assert changes["liver"].dice == 1.0


def test_a_new_run_keeps_what_was_corrected_completed_or_removed(case):
    assert find_kept_organs(case.segmentation).organs == ()
    paint(case, "liver", FINDINGS[1], 0)
    set_status(case, 2, "accepted")
    case.segmentation.GetSegmentation().RemoveSegment("left_kidney")
    kept = find_kept_organs(case.segmentation)
    assert set(kept.segments) == {"liver", "spleen"} and kept.removed == ("left_kidney",)


@pytest.mark.parametrize("status", ["InProgress", "Completed", "Flagged"])
def test_a_new_run_keeps_what_was_worked_on_in_a_segmentation_loaded_from_a_file(case, status, tmp_path):
    from DCASegmentationLib.scene.result_import import ResultFiles, show_result
    from DCASegmentationLib.scene.storage import save_segmentation

    paint(case, "liver", FINDINGS[1], 0)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(case.segmentation.GetSegmentation().GetSegment("liver"), getattr(logic, status))
    path = tmp_path / "organs.seg.nrrd"
    save_segmentation(case.segmentation, path)
    loaded = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(loaded) and read_case_nodes(loaded) is None
    loaded.CreateDefaultDisplayNodes()
    kept = find_kept_organs(loaded)
    assert kept.organs == ("liver",)
    files = ResultFiles(tmp_path)
    files.labels = label_array()
    nodes = show_result(files, case.ct, AMOS, segmentation=loaded, kept=kept)
    expected = label_array()
    expected[FINDINGS[1]] = 0
    np.testing.assert_array_equal(labels_by_id(nodes)["liver"], expected == LIVER)


def labels_by_id(nodes):
    ids = nodes.segmentation.GetSegmentation().GetSegmentIDs()
    return {each: slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, each, nodes.ct) > 0 for each in ids}


def test_the_review_is_saved_with_the_scene_and_restored(case, tmp_path):
    accept_suggestion(case, 1)
    set_status(case, 3, "flagged")
    mark_organ(case, "bladder", True)
    path = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(path))
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.ReadFromMRB(str(path), False)
    (again,) = find_cases_in_scene()
    assert read_review(again.segmentation) == review()
    assert statuses(again) == {1: "suggestion", 2: "to_check", 3: "flagged"}
    assert is_organ_reviewed(again, "bladder")
    assert read_origin(again.segmentation).model == "made-up"
    np.testing.assert_array_equal(labels_of(again), with_suggestions(1))
    assert not follow_edits(again)
    take_back(again, 1)
    accept_suggestion(again, 2)
    np.testing.assert_array_equal(labels_of(again), with_suggestions(2))


def test_a_damaged_record_is_ignored(case):
    case.segmentation.SetAttribute("DCASegmentation.review", "{")
    case.segmentation.SetAttribute("DCASegmentation.review.state", "[1]")
    assert read_review(case.segmentation) is None
    assert read_state(case.segmentation).statuses == {}
    assert not follow_edits(case)


def test_a_scene_without_the_voxels_of_its_label_maps_can_still_be_used(case):
    """As Slicer 5.10 writes it next to a .mrml file: the hidden nodes, but not their voxels."""
    paint(case, "liver", FINDINGS[1], 0)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(case.segmentation.GetSegmentation().GetSegment("spleen"), logic.InProgress)
    for node in case.list_label_maps():
        node.SetAndObserveImageData(None)
    left = read_case_nodes(case.segmentation)
    assert left.list_label_maps() == [] and lacks_label_maps(case.segmentation)
    assert find_kept_organs(case.segmentation).organs == ("spleen",), "only the status tells what was worked on"
    assert compute_organ_changes(left) == () and not follow_edits(left)
    with pytest.raises(UserError, match=r"\.mrb"):
        accept_suggestion(left, 1)
    write_case_nodes(left)
    assert lacks_label_maps(case.segmentation), "the record of what is missing stays"


def test_a_new_run_removes_label_maps_without_voxels(case, tmp_path):
    from DCASegmentationLib.scene.result_import import ResultFiles, show_result

    empty = case.list_label_maps()
    for node in empty:
        node.SetAndObserveImageData(None)
    files = ResultFiles(tmp_path)
    files.labels = label_array()
    show_result(files, case.ct, AMOS, segmentation=case.segmentation)
    assert not any(slicer.mrmlScene.IsNodePresent(node) for node in empty)
    assert not lacks_label_maps(case.segmentation)


def test_without_the_volume_of_findings_the_list_remains(case):
    slicer.mrmlScene.RemoveNode(case.finding_ranks)
    left = read_case_nodes(case.segmentation)
    assert len(read_review(left.segmentation).findings) == 3
    assert finding_view.show_outline(left, review().findings[0]) is None
    with pytest.raises(UserError, match="was deleted"):
        accept_suggestion(left, 1)


def voxels_inside(surface, volume):
    """Which voxels (z, y, x) of a volume node have their center inside a surface."""
    shape = slicer.util.arrayFromVolume(volume).shape
    matrix = slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(volume))
    indices = np.indices(shape).reshape(3, -1)[::-1]
    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk((matrix[:3, :3] @ indices + matrix[:3, 3:]).T.copy(), deep=True))
    cloud = vtk.vtkPolyData()
    cloud.SetPoints(points)
    within = vtk.vtkSelectEnclosedPoints()
    within.SetInputData(cloud)
    within.SetSurfaceData(surface)
    within.Update()
    return np.array([within.IsInside(index) for index in range(points.GetNumberOfPoints())], bool).reshape(shape)


def test_a_finding_is_outlined_and_centered_in_all_views(case):
    finding = review().findings[1]
    camera = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCameraNode")
    looking = np.array(camera.GetPosition()) - camera.GetFocalPoint()
    node = finding_view.show_outline(case, finding)
    finding_view.jump_to(case, finding)
    inside = voxels_inside(node.GetPolyData(), case.ct)
    np.testing.assert_array_equal(inside, np.isin(np.arange(inside.size), flat(FINDINGS[2])).reshape(inside.shape))
    ras = np.array(finding.position_mm) * (-1, -1, 1)
    red = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    assert [red.GetSliceToRAS().GetElement(row, 3) for row in range(3)] == pytest.approx(ras)
    assert camera.GetFocalPoint() == pytest.approx(ras)
    assert np.array(camera.GetPosition()) - camera.GetFocalPoint() == pytest.approx(looking)
    assert node.GetHideFromEditors() and not node.GetSaveWithScene()
    finding_view.hide_outline()
    assert not node.GetDisplayVisibility()


def test_findings_follow_the_transform_of_the_case(case):
    import vtk

    matrix = vtk.vtkTransform()
    matrix.Translate(5.0, -3.0, 8.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix.GetMatrix())
    finding = review().findings[0]
    before = np.array(finding_view.get_finding_position(case, finding))
    for node in (case.ct, case.segmentation, case.automatic, case.finding_ranks):
        node.SetAndObserveTransformNodeID(transform.GetID())
    assert np.array(finding_view.get_finding_position(case, finding)) - before == pytest.approx([5.0, -3.0, 8.0])
    accept_suggestion(case, 1)
    np.testing.assert_array_equal(labels_of(case), with_suggestions(1))


def registration(*translation, degrees=20.0):
    turn = vtk.vtkTransform()
    turn.RotateZ(degrees)
    turn.Translate(*translation)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Registration")
    node.SetMatrixTransformToParent(turn.GetMatrix())
    return node.GetID()


def put_under(transform, *nodes):
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform)


def harden(*nodes):
    for node in nodes:
        node.HardenTransform()


def moved(case):
    put_under(registration(20.0, 7.0, 16.0), case.ct, case.segmentation)
    follow(case)


def moved_by_whole_voxels(case):
    put_under(registration(20.0, 0.0, 0.0, degrees=0.0), case.ct, case.segmentation)
    follow(case)


# What a user may do after a run with the nodes that Slicer lists.
MOVES = {
    "put under": lambda case: put_under(registration(20.0, 7.0, 16.0), case.ct, case.segmentation),
    "released": lambda case: (moved(case), put_under(None, case.segmentation, case.ct)),
    "hardened": lambda case: (moved(case), harden(case.ct, case.segmentation)),
    "hardened before the CT": lambda case: (moved(case), harden(case.segmentation, case.ct)),
    "hardened by whole voxels": lambda case: (moved_by_whole_voxels(case), harden(case.ct, case.segmentation)),
    "segmentation alone": lambda case: put_under(registration(20.0, 7.0, 16.0), case.segmentation),
}


def follow(case):
    return follow_transforms(read_case_nodes(case.segmentation))


@pytest.mark.parametrize("move", list(MOVES))
def test_the_hidden_volumes_follow_what_the_user_moves(case, move):
    finding = review().findings[0]
    set_status(case, 3, "accepted")
    voxel = [(part.start + part.stop - 1) // 2 for part in reversed(FINDINGS[1])]
    MOVES[move](case)
    assert follow(case)
    now = read_case_nodes(case.segmentation)
    assert not follow_edits(now) and compute_finding_changes(now) == {}
    assert {change.organ.key for change in compute_organ_changes(now) if change.changed} == set()
    assert find_kept_organs(case.segmentation).organs == ("right_kidney",)
    accept_suggestion(now, 1)
    take_back(now, 1)
    accept_suggestion(now, 1)
    if move != "segmentation alone":
        np.testing.assert_array_equal(labels_of(now), with_suggestions(1))
        at = to_world(case.ct, tuple(get_ijk_to_ras(case.ct).MultiplyPoint([*voxel, 1.0])[:3]))
        assert finding_view.get_finding_position(now, read_review(case.segmentation).findings[0]) == pytest.approx(at)
        assert now.entropy.GetTransformNodeID() == case.ct.GetTransformNodeID()
        for node in now.maps():
            np.testing.assert_allclose(
                slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(node)),
                slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(case.ct)),
                atol=1e-6,
            )
    else:
        assert now.entropy.GetTransformNodeID() is None, "the maps stay on the CT"
    assert finding.rank in read_state(case.segmentation).before


def test_nothing_is_changed_while_the_hidden_volumes_are_elsewhere(case):
    accept_suggestion(case, 2)
    labels, state = labels_of(case), read_state(case.segmentation)
    put_under(registration(20.0, 7.0, 16.0), case.ct, case.segmentation)
    for action in (lambda: accept_suggestion(case, 1), lambda: take_back(case, 2), lambda: follow_edits(case)):
        with pytest.raises(UserError, match="Case organs was moved away from the automatic result"):
            action()
    np.testing.assert_array_equal(labels_of(case), labels)
    assert read_state(case.segmentation) == state
    put_under(None, case.ct, case.segmentation)
    assert not follow_edits(case)


def test_volumes_that_cannot_follow_stay_where_they_are(case):
    """After hardening a transform that is not linear, the voxels of the segmentation are other ones."""
    before = slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(case.automatic)).copy()
    put_under(registration(20.0, 7.0, 16.0), case.segmentation)
    follow(case)
    case.segmentation.HardenTransform()
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.ones((3, 3, 3), np.uint8), case.segmentation, "liver", moved_grid(case.ct)
    )
    for segment_id in ("spleen", "right_kidney", "left_kidney"):
        case.segmentation.GetSegmentation().RemoveSegment(segment_id)
    assert not follow(case)
    np.testing.assert_array_equal(slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(case.automatic)), before)
    with pytest.raises(UserError, match="segment the CT again"):
        follow_edits(read_case_nodes(case.segmentation))


def moved_grid(ct):
    """A volume whose voxels are not those of the CT."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.util.updateVolumeFromArray(node, np.zeros((3, 3, 3), np.uint8))
    node.SetOrigin(*(value + 1.234 for value in ct.GetOrigin()))
    return node


@pytest.mark.parametrize("limit", ["finding", "uncertain"])
def test_the_segment_editor_paints_only_in_the_editable_area(case, limit):
    from DCASegmentationLib.scene.editable_area import get_editor_node

    node = get_editor_node()
    area = (
        editable_area.limit_to_finding(case, review().findings[2])
        if limit == "finding"
        else editable_area.limit_to_uncertain(case, 0.5)
    )
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.SetSegmentEditorNode(node)
    logic.SetSegmentationNode(case.segmentation)
    logic.SetCurrentSegmentID("right_kidney")
    logic.SetSourceVolumeNode(area)
    editable_area.mask_with(node)
    logic.UpdateReferenceGeometryImage()
    logic.ResetModifierLabelmapToDefault()
    modifier = logic.GetModifierLabelmap()
    modifier.GetPointData().GetScalars().Fill(1)
    logic.ModifySegmentByLabelmap(
        case.segmentation, "right_kidney", modifier, logic.ModificationModeAdd, (0, -1, 0, -1, 0, -1), True, False
    )
    painted = (labels_of(case) != label_array()).astype(bool)
    if limit == "finding":
        near = sitk.GetArrayFromImage(small_distance())
        assert painted[FINDINGS[1]].sum() == 0 and painted.any()
        assert near[painted].max() <= 5.0
    else:
        entropy = slicer.util.arrayFromVolume(case.entropy)
        assert painted.any() and entropy[painted].min() >= 0.5
    editable_area.clear_editable_area(node)
    assert not node.GetSourceVolumeIntensityMask()
    assert slicer.mrmlScene.GetSingletonNode("DCASegmentation.editable", "vtkMRMLScalarVolumeNode") is None


def small_distance():
    """The distance of each voxel from the third finding (mm)."""
    mask = np.zeros_like(label_array())
    mask[FINDINGS[3]] = 1
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing((5.0, 6.0, 8.0))
    return sitk.SignedMaurerDistanceMap(image, False, False, True)


def flat(box):
    index = np.arange(label_array().size).reshape(label_array().shape)
    return index[box].ravel()


def test_suggestions_are_stored_voxel_by_voxel(case):
    np.testing.assert_array_equal(read_suggestion(case.segmentation, 1), alternative_array()[FINDINGS[1]].ravel())
    assert read_suggestion(case.segmentation, 3) is None


def test_an_organ_is_completed_only_with_its_shared_findings(case):
    from dataclasses import replace

    from DCASegmentationLib.scene.review_record import write_review

    first, second, third = review().findings
    shared = replace(review(), findings=(first, replace(second, others=("liver",)), third))
    write_review(case.segmentation, shared, {})
    set_status(case, 1, "accepted")
    assert segment_status(case, "liver") == "In progress"
    set_status(case, 2, "accepted")
    assert (segment_status(case, "liver"), segment_status(case, "spleen")) == ("Completed", "Completed")


def test_an_organ_that_no_finding_is_named_after_is_not_completed_by_other_findings(case):
    """Otherwise its labels would go into the training set although nobody has reviewed it."""
    from dataclasses import replace

    from DCASegmentationLib.scene.review_record import write_review

    first, second, third = review().findings
    shared = replace(review(), findings=(first, replace(second, others=("left_kidney", "bladder")), third))
    write_review(case.segmentation, shared, {})
    for rank in FINDINGS:
        set_status(case, rank, "accepted")
    assert segment_status(case, "spleen") == "Completed"
    assert segment_status(case, "left_kidney") == "Not started" and not is_organ_reviewed(case, "left_kidney")
    assert not is_organ_reviewed(case, "bladder"), "it is not known to be absent either"
    mark_organ(case, "left_kidney", True)
    set_status(case, 2, "to_check")
    assert is_organ_reviewed(case, "left_kidney"), "the user's mark stays"


def test_an_organ_marked_by_the_user_stays_reviewed_whatever_happens_to_its_findings(case):
    mark_organ(case, "liver", True)
    paint(case, "liver", (slice(18, 19), slice(6, 8), slice(4, 6)), 0)
    follow_edits(case)
    set_status(case, 1, "to_check")
    assert is_organ_reviewed(case, "liver")
    mark_organ(case, "liver", False)
    assert not is_organ_reviewed(case, "liver")
