"""Planes and drawn views, without Slicer or OpenGL."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import OutputError
from dcaseg.organs import AMOS
from dcaseg.rendering.body import compute_body_mask
from dcaseg.rendering.case_picture import add_map, draw_case, draw_ct, draw_depth_view
from dcaseg.rendering.layout import find_missing_organs, find_organs
from dcaseg.rendering.planes import Plane, choose_planes, sample
from scene_case import BOXES, in_wide_air, on_grid, small_ct, small_labels, small_result


def test_the_coronal_plane_shows_both_kidneys():
    planes = choose_planes(small_ct(0.0), small_labels(0.0))
    # Liver, spleen and kidneys share only rows 22 and 23, as the spleen reaches to row 23: posterior of the middle.
    y_of_rows = [-small_ct(0.0).TransformIndexToPhysicalPoint((0, row, 0))[1] for row in (22, 23)]
    assert min(y_of_rows) - 6 <= planes["coronal"].center[1] <= max(y_of_rows) + 6


def test_a_small_organ_counts_as_much_as_a_large_one():
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    labels[2:20, 2:38, 2:38] = AMOS.by_key["liver"].label
    labels[25:27, 20:22, 10:12] = AMOS.by_key["right_adrenal_gland"].label
    labels[25:27, 20:22, 28:30] = AMOS.by_key["left_adrenal_gland"].label
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((5.0, 5.0, 5.0))
    z = choose_planes(sitk.Cast(image, sitk.sitkInt16) * 100 - 100, image)["axial"].center[2]
    assert 24 * 5 <= z <= 28 * 5


def test_planes_are_cropped_to_the_body_and_to_the_scan():
    ct = small_ct(0.0)
    plane = choose_planes(ct, small_labels(0.0))["axial"]
    body_width = (40 - 4) * 5.0
    assert body_width - 10 <= plane.width_mm <= 40 * 5.0


def test_without_any_organ_the_planes_pass_through_the_body():
    ct = small_ct(0.0)
    empty = on_grid(np.zeros_like(sitk.GetArrayFromImage(small_labels())), 0.0)
    middle = ct.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in ct.GetSize()])
    center = choose_planes(ct, empty)["axial"].center
    assert center == pytest.approx((-middle[0], -middle[1], middle[2]), abs=8)


def test_an_image_of_air_gives_planes():
    air = on_grid(np.full((10, 10, 10), -1000, dtype=np.int16), 0.0)
    planes = choose_planes(air, on_grid(np.zeros((10, 10, 10), dtype=np.uint8), 0.0))
    assert all(plane.width_mm > 0 and plane.height_mm > 0 for plane in planes.values())


@pytest.mark.parametrize("tilt_degrees", [0.0, 20.0])
def test_a_plane_shows_the_voxels_at_its_pixels(tilt_degrees):
    labels = small_labels(tilt_degrees)
    box = BOXES["right_kidney"]
    index = [(part.start + part.stop - 1) / 2 for part in reversed(box)]
    left, posterior, superior = labels.TransformContinuousIndexToPhysicalPoint(index)
    plane = Plane("axial", (-left + 30.0, -posterior + 12.0, superior), 200.0, 100.0)
    pixels = sample(labels, plane, (200, 100), "nearest", 0.0)
    # 30 mm to the right of the center is 30 pixels to the left of it; 12 mm posterior is 12 pixels below.
    assert pixels[50 + 12, 100 + 30] == AMOS.by_key["right_kidney"].label


def test_the_depth_view_shows_the_organ_in_front():
    labels = small_labels(0.0)
    columns, rows = 200, 200
    plane = choose_planes(small_ct(0.0), labels)["coronal"]
    view = draw_depth_view(labels, AMOS, plane, (columns, rows))
    liver = np.array(AMOS.by_key["liver"].color) / 255
    painted = view[(view != 255).any(axis=2)].astype(float)
    hue = painted / np.linalg.norm(painted, axis=1, keepdims=True)
    assert np.mean(hue @ liver / np.linalg.norm(liver) > 0.995) > 0.3
    assert np.all(view[0, 0] == 255)


def test_only_organs_with_voxels_are_listed():
    assert {organ.key for organ in find_organs(small_labels(), AMOS)} == set(BOXES)


def test_organs_that_were_not_requested_are_not_called_missing():
    result = small_result()
    assert "Bladder" in [organ.name for organ in find_missing_organs(result, AMOS)]
    result.organs = (AMOS.by_key["liver"], AMOS.by_key["stomach"])
    assert [organ.key for organ in find_missing_organs(result, AMOS)] == ["stomach"]


def test_a_map_is_drawn_in_the_body_and_not_in_the_air_around_it():
    ct, attention = in_wide_air(small_ct(0), -1000), in_wide_air(small_result(0).attention[4]["medium"], 0.9)
    plane = choose_planes(ct, in_wide_air(small_labels(0), 0))["axial"]
    view = draw_ct(ct, plane, (200, 160))
    drawn = add_map(view, attention, plane, "Viridis", 0.5, compute_body_mask(ct))
    changed = (drawn != view).any(axis=2)
    hu = sample(ct, plane, (200, 160), "nearest", -1000.0)
    assert not changed[hu == -1000].any()
    assert changed[hu > -300].mean() > 0.6


@pytest.mark.slow
def test_a_case_without_maps_gives_a_picture_of_one_row(tmp_path):
    result = small_result()
    draw_case(tmp_path / "full.png", small_ct(), result, AMOS, "Case")
    result.attention, result.dominant_expert = {}, None
    draw_case(tmp_path / "plain.png", small_ct(), result, AMOS, "Case")
    import matplotlib.image

    full, plain = (matplotlib.image.imread(tmp_path / name) for name in ("full.png", "plain.png"))
    assert plain.shape[0] < 0.75 * full.shape[0]


def test_a_missing_folder_is_a_readable_error(tmp_path):
    with pytest.raises(OutputError, match="There is no folder"):
        draw_case(tmp_path / "nowhere" / "case.png", small_ct(), small_result(), AMOS, "Case")
