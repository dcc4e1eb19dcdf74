"""Volume, HU, attention by organ, the values at the cursor, and surface files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import OutputError
from dcaseg.organs import AMOS
from scene_case import BOXES, SIZE_ZYX, on_grid, small_ct, small_labels, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
vtk = pytest.importorskip("vtk")
pytestmark = pytest.mark.scene

ML_PER_VOXEL = 5.0 * 6.0 * 8.0 / 1000.0


@pytest.fixture
def ct():
    """The small CT with noise, so that a wrong voxel would change a mean."""
    hu = sitk.GetArrayFromImage(small_ct())
    return on_grid(hu + np.random.default_rng(0).integers(-50, 50, hu.shape).astype(np.int16), tilt_degrees=12.0)


@pytest.fixture
def case(ct):
    from DCASegmentationLib.scene.headless import boot
    from DCASegmentationLib.scene.scene_builder import build_scene

    boot()
    slicer.mrmlScene.Clear(False)
    yield build_scene(ct, small_result(), AMOS, name="Case")
    slicer.mrmlScene.Clear(False)


def measured(case):
    from DCASegmentationLib.scene.segment_statistics import measure_segments

    return {row.segment_id: row for row in measure_segments(case.segmentation, case.ct)}


def moved_by(millimeters):
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, millimeters)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix)
    return transform.GetID()


def paint(segmentation, segment_id, box, ct_node):
    """Set a segment to a box of voxels as the Segment Editor does; it may overlap other segments."""
    array = np.zeros(SIZE_ZYX, np.uint8)
    array[box] = 1
    segmentation.GetSegmentation().SeparateSegmentLabelmap(segment_id)
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, segmentation, segment_id, ct_node)


def test_volume_and_mean_hu_match_the_voxels(case, ct):
    hu = sitk.GetArrayFromImage(ct)
    rows = measured(case)
    assert list(rows) == list(case.segmentation.GetSegmentation().GetSegmentIDs())
    for key, box in BOXES.items():
        assert rows[key].voxels == hu[box].size
        assert rows[key].ml == pytest.approx(hu[box].size * ML_PER_VOXEL)
        assert rows[key].mean_hu == pytest.approx(hu[box].mean())


def test_a_correction_changes_the_numbers_and_overlap_counts_for_both(case, ct):
    hu = sitk.GetArrayFromImage(ct)
    across_the_liver = (slice(10, 20), slice(8, 30), slice(6, 30))
    paint(case.segmentation, "spleen", across_the_liver, case.ct)
    rows = measured(case)
    assert case.segmentation.GetSegmentation().GetNumberOfLayers() == 2
    assert rows["spleen"].voxels == hu[across_the_liver].size
    assert rows["spleen"].mean_hu == pytest.approx(hu[across_the_liver].mean())
    assert rows["liver"].mean_hu == pytest.approx(hu[BOXES["liver"]].mean())


def test_an_organ_extended_to_the_end_of_the_scan_is_cut_off(case):
    assert not any(row.cut_off for row in measured(case).values())
    to_the_last_slice = (slice(12, SIZE_ZYX[0]), slice(12, 24), slice(26, 34))
    paint(case.segmentation, "spleen", to_the_last_slice, case.ct)
    rows = measured(case)
    assert {key for key, row in rows.items() if row.cut_off} == {"spleen"}
    assert "cut off by the scan: lower bound" in rows["spleen"].note
    assert rows["spleen"].shown_ml.startswith("\N{GREATER-THAN OR EQUAL TO} ")


def test_a_segment_without_voxels_has_no_hu(case):
    case.segmentation.GetSegmentation().AddEmptySegment("new", "New")
    assert measured(case)["new"].mean_hu is None
    assert measured(case)["new"].ml == 0.0
    assert measured(case)["new"].note == "empty"


def test_a_ct_moved_with_its_segmentation_measures_the_same(case):
    before = measured(case)
    transform = moved_by(33.3)
    case.ct.SetAndObserveTransformNodeID(transform)
    case.segmentation.SetAndObserveTransformNodeID(transform)
    assert measured(case) == before


def test_a_segmentation_moved_alone_is_measured_at_its_new_position(case, ct):
    hu = sitk.GetArrayFromImage(ct)
    case.segmentation.SetAndObserveTransformNodeID(moved_by(-2 * 5.0))  # two voxels toward the patient's left
    z, y, x = BOXES["liver"]
    assert measured(case)["liver"].mean_hu == pytest.approx(hu[z, y, x.start + 2 : x.stop + 2].mean())


def test_an_unusual_volume_is_noted(case):
    assert measured(case)["liver"].note == "below the usual range of 800 to 2600 ml"
    assert measured(case)["spleen"].note == ""


def test_the_table_is_csv_with_a_header(case):
    from DCASegmentationLib.scene.segment_statistics import as_text

    lines = as_text(measured(case).values()).splitlines()
    assert lines[0] == "organ,name,ml,mean_hu,voxels,note"
    assert lines[1].startswith("spleen,Spleen,184.320,")
    assert as_text(measured(case).values(), "\t").splitlines()[1].split("\t")[1] == "Spleen"


def test_attention_by_organ_is_the_mean_within_the_organ(case):
    from DCASegmentationLib.scene.expert_attention import compute_segment_attention

    rows = {row.segment_id: row for row in compute_segment_attention(case, 4)}
    assert rows["liver"].means == pytest.approx({"head": 0.9, "medium": 0.095, "tail": 0.005}, abs=1e-6)
    assert rows["left_kidney"].means == pytest.approx({"head": 0.1, "medium": 0.09, "tail": 0.81}, abs=1e-6)
    assert compute_segment_attention(case, 1) == []


def test_attention_is_read_on_the_models_grid_for_any_orientation(case):
    """The model's grid is coarser, with axes toward R, A, S; the CT's axes are toward L, P, S."""
    from DCASegmentationLib.scene.expert_attention import compute_segment_attention
    from DCASegmentationLib.scene.maps import show_attention

    def on_model_grid(image):
        coarse = sitk.Resample(image, [20, 17, 13], sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor,
                               image.GetOrigin(), (10.0, 12.0, 16.0), image.GetDirection())  # fmt: skip
        return sitk.Flip(coarse, [True, True, False])

    maps = {name: on_model_grid(image) for name, image in small_result().attention[4].items()}
    case.attention[3] = show_attention(maps, level=3)
    labels = sitk.GetArrayFromImage(on_model_grid(small_labels()))
    rows = {row.segment_id: row for row in compute_segment_attention(case, 3)}
    for key in BOXES:
        expected = sitk.GetArrayFromImage(maps["tail"])[labels == AMOS.by_key[key].label].mean()
        assert rows[key].means["tail"] == pytest.approx(expected, abs=1e-6)


def test_the_bar_plot_has_a_series_per_expert_and_names_every_organ(case):
    from DCASegmentationLib.scene.expert_attention import compute_segment_attention, update_chart

    case.segmentation.GetSegmentation().AddEmptySegment("new", "New")
    chart = update_chart(case, 4, compute_segment_attention(case, 4))
    series = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
    assert [each.GetName() for each in series] == ["Large organs (head)", "Medium organs", "Small organs (tail)"]
    assert chart.GetXAxisTitle() == "1 Sp   2 RK   3 LK   4 Li"
    table = series[0].GetTableNode().GetTable()
    assert [table.GetValueByName(row, "Organ").ToString() for row in range(table.GetNumberOfRows())][3] == "Liver"
    assert table.GetValueByName(3, series[0].GetYColumnName()).ToDouble() == pytest.approx(0.9, abs=1e-6)
    assert table.GetValueByName(3, series[0].GetXColumnName()).ToDouble() == 4
    assert update_chart(case, 4, compute_segment_attention(case, 4)) is chart


def ras_of(index):
    left, posterior, superior = small_ct().TransformIndexToPhysicalPoint(index)
    return -left, -posterior, superior


def test_the_read_out_has_organ_hu_attention_and_uncertainty(case, ct):
    from DCASegmentationLib.scene.probe import read_at

    found = read_at(case, ras_of((10, 14, 15)), 4)
    assert found.organs == ("Liver",)
    assert found.hu == ct[10, 14, 15]
    assert found.attention == pytest.approx({"head": 0.9, "medium": 0.095, "tail": 0.005}, abs=1e-6)
    assert found.uncertainty == pytest.approx(0.1, abs=1e-6)
    assert found.disagreement is None


def test_the_read_out_is_empty_outside_and_skips_hidden_organs(case):
    from DCASegmentationLib.scene.probe import VoxelProbe, read_at

    assert read_at(case, (900.0, 0.0, 0.0), 4) == VoxelProbe()
    case.segmentation.GetDisplayNode().SetSegmentVisibility("liver", False)
    assert read_at(case, ras_of((10, 14, 15)), 4).organs == ()


def test_the_read_out_follows_a_moved_case(case):
    from DCASegmentationLib.scene.probe import read_at

    expected = read_at(case, ras_of((10, 14, 15)), 4)
    transform = moved_by(33.3)
    for node in case.all():
        node.SetAndObserveTransformNodeID(transform)
    right, anterior, superior = ras_of((10, 14, 15))
    assert read_at(case, (right + 33.3, anterior, superior), 4) == expected


def test_surfaces_of_visible_segments_are_written_at_the_position_of_the_organs(case, tmp_path):
    from DCASegmentationLib.scene.surfaces import write_surfaces

    case.segmentation.GetDisplayNode().SetSegmentVisibility("spleen", False)
    fractions = []
    files = write_surfaces(case.segmentation, tmp_path, lambda fraction, message: fractions.append(fraction))
    assert [path.name for path in files] == [
        f"Case organs_{name}.stl" for name in ("Left kidney", "Liver", "Right kidney")
    ]
    assert sorted(tmp_path.iterdir()) == files
    assert fractions == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    content = files[1].read_bytes()
    (triangles,) = struct.unpack("<I", content[80:84])
    corners = np.frombuffer(content[84:], np.dtype([("normal", "<3f4"), ("corners", "<9f4"), ("rest", "<u2")]))[
        "corners"
    ]
    assert triangles > 100
    z, y, x = BOXES["liver"]
    middle = small_ct().TransformContinuousIndexToPhysicalPoint([(s.start + s.stop - 1) / 2 for s in (x, y, z)])
    corners = corners.reshape(-1, 3)
    assert (corners.min(axis=0) + corners.max(axis=0)) / 2 == pytest.approx(middle, abs=4.0)


def test_surfaces_get_file_names_that_every_system_allows_and_that_differ(case, tmp_path):
    from DCASegmentationLib.scene.surfaces import write_surfaces

    case.segmentation.SetName("6: CHEST/ABD organs")
    content = case.segmentation.GetSegmentation()
    for segment_id, name in (("spleen", "Spleen / cyst"), ("liver", "left Kidney"), ("right_kidney", "cyst?")):
        content.GetSegment(segment_id).SetName(name)
    names = [path.name for path in write_surfaces(case.segmentation, tmp_path)]
    start = "6_ CHEST_ABD organs"
    expected = ["Left kidney", "Spleen _ cyst", "cyst_", "left Kidney (2)"]
    assert names == [f"{start}_{name}.stl" for name in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_error_names_the_segment_whose_surface_cannot_be_written(case, tmp_path, monkeypatch):
    from DCASegmentationLib.scene import surfaces

    monkeypatch.setattr(surfaces, "_is_whole", lambda path: "Liver" not in path.name)
    with pytest.raises(OutputError, match=r"surface of Liver cannot be written to .*Liver\.stl"):
        surfaces.write_surfaces(case.segmentation, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("6: CHEST/ABD", "6_ CHEST_ABD"), ("..", "untitled"), ("", "untitled"), ("CT 3. ", "CT 3"), ("a\nb", "a_b"),
        ("con", "_con"), ("COM1.x", "_COM1.x"), ("contrast", "contrast"), ("Leber \xfc", "Leber \xfc"),
        ("x" * 500, "x" * 120), ("C:\\a*b<c>|d", "C_a_b_c_d"),
    ],
)  # fmt: skip
def test_a_name_becomes_a_file_name(name, expected):
    from DCASegmentationLib.scene.storage import sanitize_file_name

    assert sanitize_file_name(name) == expected


def test_surfaces_of_a_segment_edited_while_they_are_made_are_made_again(case):
    from DCASegmentationLib.scene.surfaces import compute_surfaces_in_steps

    def points(segment_id):
        surface = vtk.vtkPolyData()
        case.segmentation.GetClosedSurfaceRepresentation(segment_id, surface)
        return surface.GetNumberOfPoints()

    case.segmentation.CreateClosedSurfaceRepresentation()
    whole = points("spleen")
    case.segmentation.RemoveClosedSurfaceRepresentation()
    making = compute_surfaces_in_steps(case.segmentation)
    next(making)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(case.segmentation, "spleen", case.ct)
    mask[15:] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, case.segmentation, "spleen", case.ct)
    for _step in making:
        pass
    shown = points("spleen")
    case.segmentation.RemoveClosedSurfaceRepresentation()
    case.segmentation.CreateClosedSurfaceRepresentation()
    assert shown == points("spleen") < whole


def test_surfaces_overwrite_nothing(case, tmp_path):
    from DCASegmentationLib.scene.surfaces import write_surfaces

    existing = tmp_path / "Case organs_Liver.stl"
    existing.write_text("precious")
    with pytest.raises(OutputError, match=r"Liver\.stl already exists"):
        write_surfaces(case.segmentation, tmp_path)
    assert existing.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [existing]


def test_nothing_visible_and_a_missing_folder_are_reported(case, tmp_path):
    from DCASegmentationLib.scene.surfaces import write_surfaces

    with pytest.raises(OutputError, match="nowhere"):
        write_surfaces(case.segmentation, tmp_path / "nowhere")
    case.segmentation.GetDisplayNode().SetAllSegmentsVisibility(False)
    with pytest.raises(OutputError, match="No segment is visible"):
        write_surfaces(case.segmentation, tmp_path)
