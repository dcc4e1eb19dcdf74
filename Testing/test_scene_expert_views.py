"""Maps over the CT in the slice views, and the view layouts of a result."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.organs import AMOS
from scene_case import small_ct, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene

USUAL_VIEWS = ("Red", "Yellow", "Green")


@pytest.fixture
def case():
    from DCASegmentationLib.scene.headless import boot
    from DCASegmentationLib.scene.scene_builder import build_scene

    boot()
    slicer.mrmlScene.Clear(False)
    yield build_scene(small_ct(), small_result(), AMOS, name="Case")
    slicer.mrmlScene.Clear(False)


@pytest.fixture
def layout_node(case):
    """Slicer's own layout logic, which creates the views of a layout."""
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    node = logic.GetLayoutNode()
    node.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    yield node
    logic.SetMRMLScene(None)


def composite(view):
    return slicer.mrmlScene.GetSingletonNode(view, "vtkMRMLSliceCompositeNode")


def show(case, choice, may_switch=False, **style):
    from DCASegmentationLib.scene.expert_views import MapStyle, get_map_node, show_map_over_ct

    show_map_over_ct(case, get_map_node(case, 4, choice), MapStyle(**style), may_switch)


def test_only_available_maps_can_be_selected(case):
    from DCASegmentationLib.scene.expert_views import list_choices

    assert list_choices(case, 4) == ["none", "deciding", "head", "medium", "tail", "uncertainty"]
    assert list_choices(case, 1) == ["none", "deciding", "uncertainty"]


def test_an_attention_map_is_shown_over_the_ct_in_all_of_its_views(case):
    show(case, "tail", opacity=0.4, threshold=0.25, colors="Cividis", legend=False)
    node = case.attention[4]["tail"]
    for view in USUAL_VIEWS:
        assert composite(view).GetBackgroundVolumeID() == case.ct.GetID()
        assert composite(view).GetForegroundVolumeID() == node.GetID()
        assert composite(view).GetForegroundOpacity() == pytest.approx(0.4)
    assert node.GetDisplayNode().GetApplyThreshold()
    assert node.GetDisplayNode().GetLowerThreshold() == 0.25
    assert node.GetDisplayNode().GetColorNode().GetName() == "Cividis (0 to 1)"
    assert not slicer.modules.colors.logic().GetColorLegendDisplayNode(node).GetVisibility()


def test_the_dominant_expert_map_replaces_another_map_and_is_removed(case):
    show(case, "head")
    show(case, "deciding", opacity=0.7)
    assert composite("Red").GetForegroundVolumeID() is None
    assert composite("Red").GetLabelVolumeID() == case.dominant_expert.GetID()
    assert composite("Red").GetLabelOpacity() == pytest.approx(0.7)
    show(case, "none")
    assert composite("Red").GetLabelVolumeID() is None
    assert composite("Red").GetBackgroundVolumeID() == case.ct.GetID()


@pytest.mark.parametrize("filled", [True, False])
def test_under_a_map_organs_are_only_outlined_and_their_fill_is_restored(case, filled):
    display = case.segmentation.GetDisplayNode()
    display.SetVisibility2DFill(filled)
    show(case, "head")
    show(case, "tail")
    assert not display.GetVisibility2DFill()
    assert display.GetVisibility2DOutline()
    show(case, "none")
    assert bool(display.GetVisibility2DFill()) is filled


def test_views_of_other_volumes_are_unchanged(case):
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "PET")
    composite("Yellow").SetBackgroundVolumeID(other.GetID())
    composite("Green").SetForegroundVolumeID(other.GetID())
    show(case, "deciding")
    assert composite("Yellow").GetBackgroundVolumeID() == other.GetID()
    assert composite("Yellow").GetLabelVolumeID() is None
    assert composite("Green").GetForegroundVolumeID() == other.GetID()
    assert composite("Green").GetLabelVolumeID() == case.dominant_expert.GetID()


def backgrounds():
    return {composite(view).GetBackgroundVolumeID() for view in USUAL_VIEWS}


def foregrounds():
    return {composite(view).GetForegroundVolumeID() for view in USUAL_VIEWS}


def show_another_ct():
    """What Slicer does when the user loads the CT of another patient."""
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Another CT").GetID()
    for view in USUAL_VIEWS:
        composite(view).SetBackgroundVolumeID(other)
    return other


@pytest.mark.parametrize("choice", ["none", "head", "deciding"])
def test_views_of_another_ct_keep_it_and_lose_the_map(case, choice):
    show(case, "head")
    other = show_another_ct()
    show(case, choice)
    assert backgrounds() == {other} and foregrounds() == {None}
    assert composite("Red").GetLabelVolumeID() is None


def test_only_when_the_user_chooses_a_map_do_all_views_switch_to_its_ct(case):
    show_another_ct()
    show(case, "head", may_switch=True)
    assert backgrounds() == {case.ct.GetID()} and foregrounds() == {case.attention[4]["head"].GetID()}


def test_a_view_outside_the_layout_does_not_count_as_showing_the_ct(case):
    """The usual views of the layout show another CT, and a view that only another layout has shows this one."""
    for view in ("Red", "Yellow"):
        # As Slicer's layout manager does.
        slicer.mrmlScene.GetSingletonNode(view, "vtkMRMLSliceNode").SetMappedInLayout(True)
    other = show_another_ct()
    composite("Green").SetBackgroundVolumeID(case.ct.GetID())
    show(case, "head", may_switch=True)
    assert composite("Red").GetBackgroundVolumeID() == case.ct.GetID() != other


def test_the_views_do_not_go_black_when_the_ct_is_deleted(case):
    other = show_another_ct()
    slicer.mrmlScene.RemoveNode(case.ct)
    for choice in ("none", "head"):
        show(case, choice, may_switch=True)
        assert backgrounds() == {other} and foregrounds() == {None}


def test_the_comparison_shows_no_maps_over_another_ct(case, layout_node):
    from DCASegmentationLib.scene.expert_views import MapStyle, show_side_by_side
    from DCASegmentationLib.scene.view_setup import ViewLayouts

    composites = ViewLayouts().show_comparison(case)
    show_side_by_side(composites, case, 4, MapStyle())
    other = show_another_ct()
    composites["head"].SetBackgroundVolumeID(other)
    show_side_by_side(composites, case, 4, MapStyle())
    assert composites["head"].GetBackgroundVolumeID() == other
    assert composites["head"].GetForegroundVolumeID() is None
    assert composites["tail"].GetForegroundVolumeID() == case.attention[4]["tail"].GetID()


@pytest.mark.rendering
def test_a_view_created_after_the_maps_shows_only_the_legend_of_its_map(case):
    """As the comparison views are; Slicer's legends do not appear in new views by themselves."""
    from dcaseg.rendering.planes import Plane
    from DCASegmentationLib.scene.expert_views import MapStyle, apply_style, set_map_layer
    from DCASegmentationLib.scene.headless import find_rendering_problem
    from DCASegmentationLib.scene.offscreen import SliceView

    if find_rendering_problem():
        pytest.skip(find_rendering_problem())
    head, tail = case.attention[4]["head"], case.attention[4]["tail"]

    def pixels_changed_by_legend_of(node, shown):
        with SliceView("Late", (300, 240)) as view:
            view.show(Plane("axial", (0.0, 0.0, -200.0), 300.0, 240.0), case.ct)
            set_map_layer(view.logic.GetSliceCompositeNode(), case, shown, 0.5)
            pictures = []
            for legend in (True, False):
                apply_style(node, MapStyle(legend=legend))
                pictures.append(view.render_pixels())
        return int((pictures[0] != pictures[1]).any(axis=2).sum())

    assert pixels_changed_by_legend_of(head, shown=head) > 500
    assert pixels_changed_by_legend_of(tail, shown=head) == 0


def test_experts_are_shown_side_by_side_in_separate_linked_views(case, layout_node):
    from DCASegmentationLib.scene.expert_views import MapStyle, show_side_by_side
    from DCASegmentationLib.scene.view_setup import COMPARISON, ViewLayouts, place_comparison

    red = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    composites = ViewLayouts().show_comparison(case)
    place_comparison()
    show_side_by_side(composites, case, 4, MapStyle(opacity=0.6))
    assert layout_node.GetViewArrangement() == COMPARISON
    for expert, node in case.attention[4].items():
        view = composite(f"DCA{expert.capitalize()}")
        assert view.GetForegroundVolumeID() == node.GetID()
        assert view.GetBackgroundVolumeID() == case.ct.GetID()
        assert view.GetForegroundOpacity() == pytest.approx(0.6)
        assert view.GetLinkedControl()
        slice_node = slicer.mrmlScene.GetSingletonNode(f"DCA{expert.capitalize()}", "vtkMRMLSliceNode")
        assert slice_node.GetLayoutLabel() == {"head": "Large", "medium": "Medium", "tail": "Small"}[expert]
        assert slice_node.GetSliceToRAS().GetElement(2, 3) == pytest.approx(red.GetSliceToRAS().GetElement(2, 3))
        assert slice_node.GetViewGroup() != red.GetViewGroup()


def test_a_map_in_the_usual_views_does_not_change_the_comparison(case, layout_node):
    from DCASegmentationLib.scene.expert_views import MapStyle, show_side_by_side
    from DCASegmentationLib.scene.view_setup import ViewLayouts

    show_side_by_side(ViewLayouts().show_comparison(case), case, 4, MapStyle())
    show(case, "tail")
    assert composite("DCAHead").GetForegroundVolumeID() == case.attention[4]["head"].GetID()
    assert composite("Red").GetForegroundVolumeID() == case.attention[4]["tail"].GetID()


def test_the_bar_plot_is_shown_in_the_plot_view_and_the_layout_is_restored(case, layout_node):
    from DCASegmentationLib.scene.expert_attention import compute_segment_attention, update_chart
    from DCASegmentationLib.scene.view_setup import BAR_PLOT, ViewLayouts

    layouts = ViewLayouts()
    chart = update_chart(case, 4, compute_segment_attention(case, 4))
    layouts.show_comparison(case)
    layouts.show_bar_plot(chart)
    assert layout_node.GetViewArrangement() == BAR_PLOT
    plot_view = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotViewNode")
    assert plot_view.GetPlotChartNodeID() == chart.GetID()
    layouts.restore()
    assert layout_node.GetViewArrangement() == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView


def test_the_panels_editor_node_is_one_per_scene_and_not_slicers_own(case):
    from DCASegmentationLib.scene.editable_area import get_editor_node

    node = get_editor_node()
    assert get_editor_node() is node
    assert node.GetSingletonTag() == "DCASegmentation"


def test_the_body_mask_holds_gas_but_neither_air_nor_table(fake_slicer):
    from DCASegmentationLib.scene.maps import compute_body_mask
    from DCASegmentationLib.scene.volumes import show_ct

    z, y, x = np.ogrid[:20, :60, :80]
    hu = np.where(((y - 28) / 20) ** 2 + ((x - 40) / 30) ** 2 + 0 * z < 1, 0, -1000).astype(np.int16)
    hu[5:15, 24:32, 36:44] = -1000  # gas
    hu[:, 54:56, 10:70] = 100  # table
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 4.0))
    node = show_ct(image, "CT")
    body = compute_body_mask(node, node)
    assert body[10, 28, 40] and body[:, 28, 20:60].all()
    assert not body[:, 52:].any() and not body[:, :, :8].any()
    assert 0.8 < body.sum() / np.count_nonzero(hu[:, :52] > -500) < 1.0
