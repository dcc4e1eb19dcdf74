"""The pixels of Slicer's views, and the picture of a case with and without Slicer's views."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dcaseg.organs import AMOS
from dcaseg.rendering.case_picture import add_organs, draw_ct, make_plane_panel
from dcaseg.rendering.layout import Picture, color_table, write_picture
from dcaseg.rendering.planes import Plane
from DCASegmentationLib.scene.headless import find_rendering_problem
from scene_case import BOXES, small_ct, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.rendering

PIXELS = (260, 220)


@pytest.fixture(scope="module")
def case():
    if problem := find_rendering_problem():
        pytest.skip(problem)
    from DCASegmentationLib.scene.headless import boot
    from DCASegmentationLib.scene.scene_builder import build_scene

    boot()
    slicer.mrmlScene.Clear(False)
    yield build_scene(small_ct(), small_result(), AMOS)
    slicer.mrmlScene.Clear(False)


@pytest.fixture
def through_the_liver():
    """The axial plane through the middle of the liver and the spleen."""
    return _axial_plane_through("liver")


def test_the_patients_right_is_on_the_left(case, through_the_liver):
    from DCASegmentationLib.scene.offscreen import organs_filled

    with organs_filled(case.segmentation):
        pixels = _rendered(case, through_the_liver)
    assert _columns_in_color(pixels, "liver").mean() < PIXELS[0] / 2
    assert _columns_in_color(pixels, "spleen").mean() > PIXELS[0] / 2


def test_the_ct_stays_visible_below_the_fill_of_an_organ(case, through_the_liver):
    """2D props are drawn in the order they were added: a slice added after the segments would cover them."""
    from DCASegmentationLib.scene.offscreen import organs_filled

    plain = _without_organs(case, through_the_liver)
    with organs_filled(case.segmentation):
        filled = _rendered(case, through_the_liver)
    row, column = _pixel_of(through_the_liver, _center("liver"))
    expected = 0.75 * plain[row, column].astype(float) + 0.25 * np.array(AMOS.by_key["liver"].color)
    assert filled[row, column] == pytest.approx(expected, abs=4)
    assert plain[row, column] == pytest.approx([166] * 3, abs=4)  # 100 HU in the window from -160 to 240 HU


def test_a_map_shows_high_attention_in_the_bright_end_of_its_colors(case, through_the_liver):
    pixels = _without_organs(case, through_the_liver, overlay=case.attention[4]["head"], opacity=1.0)
    high = pixels[_pixel_of(through_the_liver, _center("liver"))]
    low = pixels[_pixel_of(through_the_liver, _center("spleen"))]
    assert high == pytest.approx(color_table("Viridis")[round(0.9 * 255)], abs=4)
    assert low == pytest.approx(color_table("Viridis")[round(0.1 * 255)], abs=4)


def test_the_legend_of_a_map_shown_in_a_view_can_be_switched(case, through_the_liver):
    from DCASegmentationLib.scene.maps import show_map
    from DCASegmentationLib.scene.offscreen import SliceView

    with SliceView("Test", PIXELS) as view:
        node = show_map(small_result().entropy, "Uncertainty", "Uncertainty", "Inferno")
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
        view.show(through_the_liver, case.ct, overlay=node, opacity=0.5)
        legend.SetVisibility(False)
        without = view.render_pixels()
        legend.SetVisibility(True)
        with_legend = view.render_pixels()
    slicer.mrmlScene.RemoveNode(node)
    changed = np.nonzero((without != with_legend).any(axis=(0, 2)))[0]
    assert len(changed) > 10
    assert changed.min() > PIXELS[0] / 2  # the legend is on the right


def test_the_organs_appear_in_three_dimensions_liver_on_the_left(case):
    from DCASegmentationLib.scene.offscreen import render_organs

    pixels = render_organs(case, PIXELS).pixels.astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    reddish = np.nonzero((red > green + 40) & (green > blue + 10))[1]  # liver
    purple = np.nonzero((blue > green + 25) & (red > green + 15) & (abs(red - blue) < 45))[1]  # spleen
    assert len(reddish) > 500
    assert len(purple) > 100
    assert reddish.mean() < purple.mean()
    assert np.all(pixels[0, 0] == 255)


def test_views_remove_their_nodes_from_the_scene(case, through_the_liver):
    from DCASegmentationLib.scene.offscreen import render_organs

    before = _node_names()
    _rendered(case, through_the_liver)
    render_organs(case, PIXELS)
    assert _node_names() == before


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
def test_slicer_and_matplotlib_show_the_same_slice(case, orientation):
    from DCASegmentationLib.scene.offscreen import organs_filled

    plane = Plane(orientation, _center("left_kidney"), 190.0, 160.0)
    with organs_filled(case.segmentation):
        rendered = _rendered(case, plane)
    drawn = draw_ct(small_ct(), plane, PIXELS)
    drawn = add_organs(drawn, small_result().labels, AMOS, plane, fill=0.25, thickness=2)
    assert np.corrcoef(rendered.ravel(), drawn.ravel())[0, 1] > 0.97


def test_the_picture_of_a_case_is_written_completely(case, tmp_path):
    from DCASegmentationLib.scene.offscreen import draw

    drawn = draw(tmp_path / "case.png", small_ct(), small_result(), AMOS, "Case", nodes=case)
    assert drawn.fallback_reason == ""
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]
    _assert_is_a_rich_picture(tmp_path / "case.png")


@pytest.mark.slow
def test_without_opengl_matplotlib_draws_the_picture_and_the_reason_says_what_to_install(tmp_path):
    """In a process where EGL finds no driver, as on a machine without one."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from scene_case import small_ct, small_result
from dcaseg.organs import AMOS
from DCASegmentationLib.scene.offscreen import draw
print(draw(Path({str(tmp_path / "case.png")!r}), small_ct(), small_result(), AMOS, "Case").fallback_reason)
"""
    no_driver = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent"}
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=no_driver
    )
    assert process.returncode == 0, process.stderr
    assert "apt-get install libegl1 libgl1-mesa-dri" in process.stdout
    _assert_is_a_rich_picture(tmp_path / "case.png")


def _rendered(case, plane: Plane) -> np.ndarray:
    from DCASegmentationLib.scene.offscreen import SliceView

    with SliceView("Test", PIXELS) as view:
        view.show(plane, case.ct)
        return view.render_pixels()


def _without_organs(case, plane: Plane, overlay=None, opacity: float = 0.0) -> np.ndarray:
    from DCASegmentationLib.scene.offscreen import SliceView

    case.segmentation.GetDisplayNode().SetVisibility(False)
    with SliceView("Test", PIXELS) as view:
        view.show(plane, case.ct, overlay=overlay, opacity=opacity)
        pixels = view.render_pixels()
    case.segmentation.GetDisplayNode().SetVisibility(True)
    return pixels


def _node_names() -> list[str]:
    scene = slicer.mrmlScene
    return [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]


def _axial_plane_through(organ: str) -> Plane:
    """The axial plane at the height of the organ, centered on the body."""
    return Plane("axial", (4.0, 20.0, _center(organ)[2]), 230.0, 194.0)


def _center(organ: str) -> tuple[float, float, float]:
    """The RAS position (mm) of the middle of an organ's box."""
    index = [(box.start + box.stop - 1) / 2 for box in reversed(BOXES[organ])]
    left, posterior, superior = small_ct().TransformContinuousIndexToPhysicalPoint(index)
    return -left, -posterior, superior


def _pixel_of(plane: Plane, position: tuple[float, float, float]) -> tuple[int, int]:
    """The row and column at which an axial view shows a position."""
    mm_per_pixel = max(plane.width_mm / PIXELS[0], plane.height_mm / PIXELS[1])
    column = PIXELS[0] / 2 - (position[0] - plane.center[0]) / mm_per_pixel
    row = PIXELS[1] / 2 - (position[1] - plane.center[1]) / mm_per_pixel
    return round(row), round(column)


def _columns_in_color(pixels: np.ndarray, organ: str) -> np.ndarray:
    """The columns of the pixels in the outline color of an organ."""
    difference = np.abs(pixels.astype(int) - AMOS.by_key[organ].color).max(axis=2)
    columns = np.nonzero(difference < 12)[1]
    assert len(columns) > 10
    return columns


def _assert_is_a_rich_picture(path: Path) -> None:
    import matplotlib.image

    pixels = (matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    assert pixels.shape[1] == 2400
    found = {tuple(color) for color in pixels[::2, ::2].reshape(-1, 3)}
    for key in BOXES:  # in the legend, at least
        assert AMOS.by_key[key].color in found


def test_a_panel_has_the_size_of_its_pixels():
    panel = make_plane_panel(np.zeros((100, 200, 3), dtype=np.uint8), Plane("axial", (0, 0, 0), 300.0, 150.0), "Axial")
    assert panel.mm_per_pixel == 1.5
    assert (panel.left, panel.right) == ("R", "L")


def test_names_in_other_scripts_and_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    panel = make_plane_panel(np.zeros((100, 200, 3), dtype=np.uint8), Plane("axial", (0, 0, 0), 300.0, 150.0), "Axial")
    pixels = []
    for title in ("$x^2$", "x2", "患者_$\\frac$"):
        write_picture(Picture(title, "", [panel], [], [], []), tmp_path / "picture.png")
        pixels.append((tmp_path / "picture.png").read_bytes())
    assert len(set(pixels)) == len(pixels)
