"""View setup: layouts, slice positions, window and level, and what the user sees first after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import slicer
import slicer.util

from dcaseg.rendering.layout import EXPERTS, SHORT_EXPERT_TITLES
from dcaseg.rendering.planes import SCREEN_AXES, Plane
from DCASegmentationLib.scene.case_record import CaseNodes, find_cases, find_cases_in_scene
from DCASegmentationLib.scene.expert_views import COMPARISON_VIEWS, has_ct, select_in_layout
from DCASegmentationLib.scene.headless import get_application_logic
from DCASegmentationLib.scene.nodes import to_world
from DCASegmentationLib.scene.volumes import ABDOMEN_LEVEL, ABDOMEN_WINDOW, get_ijk_to_ras

# Slice views of Slicer's standard layouts, by their orientation.
_STANDARD_VIEWS = {"axial": ("Red", "Axial"), "sagittal": ("Yellow", "Sagittal"), "coronal": ("Green", "Coronal")}
# Letter and color in the bar of each standard view, as in Slicer's layouts. A scene written outside Slicer must set
# them, because its view nodes replace Slicer's own when it is opened.
_BARS = {
    "Red": ("R", (0.952941, 0.290196, 0.2)),
    "Yellow": ("Y", (0.929412, 0.835294, 0.298039)),
    "Green": ("G", (0.431373, 0.690196, 0.294118)),
}


def group_in_folder(name: str, nodes: Sequence[Any]) -> None:
    """Put the nodes into one folder of the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
    for node in nodes:
        # In Slicer every node has an item; outside Slicer nothing creates one.
        if item := hierarchy.GetItemByDataNode(node):
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)


def arrange_views(ct_node: Any, planes: Mapping[str, Plane]) -> None:
    """Show the CT in the standard slice views, each on its plane."""
    for orientation, plane in planes.items():
        view, preset = _STANDARD_VIEWS[orientation]
        composite = get_view_node("vtkMRMLSliceCompositeNode", view)
        composite.SetBackgroundVolumeID(ct_node.GetID())
        slice_node = get_view_node("vtkMRMLSliceNode", view)
        slice_node.SetDefaultOrientation(preset)
        place_slice(slice_node, plane, slice_node.GetDimensions()[:2])


def place_slice(slice_node: Any, plane: Plane, pixels: Sequence[int]) -> None:
    """Set a vtkMRMLSliceNode to a plane, shown on ``pixels`` (columns, rows) with square pixels."""
    matrix = slice_node.GetSliceToRAS()
    for row in range(3):
        for column in range(3):
            matrix.SetElement(row, column, SCREEN_AXES[plane.orientation][row, column])
        matrix.SetElement(row, 3, plane.center[row])
    slice_node.UpdateMatrices()
    columns, rows = pixels
    mm_per_pixel = max(plane.width_mm / columns, plane.height_mm / rows)
    slice_node.SetFieldOfView(mm_per_pixel * columns, mm_per_pixel * rows, 1.0)


def get_view_node(class_name: str, view: str) -> Any:
    """The node of class ``class_name`` for a view, created if no layout manager has created it."""
    node = slicer.mrmlScene.GetSingletonNode(view, class_name)
    if node is not None:
        return node
    node = slicer.mrmlScene.CreateNodeByClass(class_name)
    node.UnRegister(None)
    node.SetSingletonTag(view)
    node.SetLayoutName(view)
    node.SetName(view)
    if class_name == "vtkMRMLSliceNode":
        node.SetDimensions(512, 512, 1)
        label, color = _BARS.get(view, (view, node.GetLayoutColor()))
        node.SetLayoutLabel(label)
        node.SetLayoutColor(*color)
    return slicer.mrmlScene.AddNode(node)


def jump_to_segment(segmentation: Any, segment_id: str) -> None:
    """Center all slice views on the middle of a segment's largest part; does nothing for an empty segment."""
    center = segmentation.GetSegmentCenterRAS(segment_id)
    if center is not None:
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center, slicer.vtkMRMLSliceNode.CenteredJumpSlice)


# Slicer's own layouts have numbers below 100; scripts use larger ones.
COMPARISON = 7301
BAR_PLOT = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView
_USUAL = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView

# A view group of its own links the comparison views with each other, but not with the usual views.
_GROUP = 73
_VIEW = (
    '<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
    '<property name="orientation" action="default">Axial</property>'
    '<property name="viewlabel" action="default">{label}</property>'
    '<property name="viewcolor" action="default">{color}</property>'
    f'<property name="viewgroup" action="default">{_GROUP}</property>'
    "</view></item>"
)


class ViewLayouts:
    """Switches between the view layouts and back to the layout that the user had before."""

    def __init__(self) -> None:
        self._before = _USUAL

    def get_layout_node(self) -> Any | None:
        """The vtkMRMLLayoutNode of the scene."""
        return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    def get_current_layout(self) -> int:
        """The current layout: Slicer's number of it, or ``COMPARISON``."""
        node = self.get_layout_node()
        return int(node.GetViewArrangement()) if node is not None else _USUAL

    def show_comparison(self, nodes: CaseNodes) -> dict[str, Any]:
        """Show the experts side by side in linked views; returns the vtkMRMLSliceCompositeNode of each expert's view.

        Slicer sets the size of the views in later turns of the event loop and resets their position when it does. Call
        :func:`place_comparison` once :func:`get_comparison_sizes` no longer changes.
        """
        register_comparison()
        self._switch(COMPARISON)
        composites = get_comparison_composites()
        for composite in composites.values():
            composite.SetBackgroundVolumeID(nodes.ct.GetID() if has_ct(nodes) else None)
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)
        return composites

    def show_bar_plot(self, chart: Any) -> None:
        """Show the usual slice views next to Slicer's plot view, with the chart in it."""
        self._switch(BAR_PLOT)
        get_application_logic().GetSelectionNode().SetActivePlotChartID(chart.GetID())
        get_application_logic().PropagatePlotChartSelection()

    def restore(self) -> None:
        """Return to the previous layout."""
        node = self.get_layout_node()
        if node is not None:
            node.SetViewArrangement(self._before)

    def _switch(self, arrangement: int) -> None:
        node = self.get_layout_node()
        if node is None:
            return
        if self.get_current_layout() not in (COMPARISON, BAR_PLOT):
            self._before = self.get_current_layout()
        node.SetViewArrangement(arrangement)


def register_comparison() -> None:
    """Register the comparison layout with Slicer; a scene stores only the number of its layout."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    if node is not None and not node.IsLayoutDescription(COMPARISON):
        node.AddLayoutDescription(COMPARISON, _create_layout_description())


def get_comparison_composites() -> dict[str, Any]:
    """The vtkMRMLSliceCompositeNode of each expert's view."""
    return {expert: get_view_node("vtkMRMLSliceCompositeNode", tag) for expert, tag in COMPARISON_VIEWS.items()}


def _create_layout_description() -> str:
    views = (
        _VIEW.format(
            tag=COMPARISON_VIEWS[name], label=SHORT_EXPERT_TITLES[name], color="#{:02x}{:02x}{:02x}".format(*color)
        )
        for _, name, color in EXPERTS
    )
    return f'<layout type="horizontal" split="true">{"".join(views)}</layout>'


def get_comparison_sizes() -> list[tuple[int, int]]:
    """The sizes (columns, rows) of the comparison views in pixels."""
    nodes = [get_view_node("vtkMRMLSliceNode", tag) for tag in COMPARISON_VIEWS.values()]
    return [tuple(node.GetDimensions()[:2]) for node in nodes]


def place_comparison() -> None:
    """Fit the CT into each comparison view, at the slice shown in the usual axial view."""
    usual = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    for tag in COMPARISON_VIEWS.values():
        node = get_view_node("vtkMRMLSliceNode", tag)
        logic = get_application_logic().GetSliceLogic(node)
        if logic is not None:
            logic.FitSliceToBackground()
        if usual is not None:
            node.JumpSliceByOffsetting(*(usual.GetSliceToRAS().GetElement(row, 3) for row in range(3)))


def use_abdominal_window(ct: Any) -> None:
    """Show a CT (vtkMRMLScalarVolumeNode) in the abdominal soft-tissue window, unless the user has set a window."""
    display = ct.GetDisplayNode()
    if display is not None and display.GetAutoWindowLevel():
        before = display.StartModify()
        display.AutoWindowLevelOff()
        display.SetWindowLevel(ABDOMEN_WINDOW, ABDOMEN_LEVEL)
        display.EndModify(before)


def hide_earlier(nodes: CaseNodes) -> list[Any]:
    """Hide earlier results of the same CT; returns the segmentations that were visible before."""
    hidden = []
    for case in find_cases(nodes.ct):
        display = case.segmentation.GetDisplayNode()
        if case.segmentation is not nodes.segmentation and display is not None and display.GetVisibility():
            display.SetVisibility(False)
            hidden.append(case.segmentation)
    return hidden


def is_in_views(ct: Any) -> bool:
    """Whether a slice view of the current layout shows this CT."""
    composites = select_in_layout(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"))
    return any(composite.GetBackgroundVolumeID() == ct.GetID() for composite in composites)


def show_in_views(ct: Any) -> None:
    """Show a CT in all slice views, fitted into them."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(ct.GetID())
        view = slicer.mrmlScene.GetSingletonNode(composite.GetLayoutName(), "vtkMRMLSliceNode")
        logic = get_application_logic().GetSliceLogic(view) if view is not None else None
        if logic is not None:
            logic.FitSliceToBackground()


def show_case_alone(nodes: CaseNodes) -> None:
    """Show this case in all slice views, and hide the results of all other CTs."""
    for case in find_cases_in_scene():
        display = case.segmentation.GetDisplayNode()
        if display is not None and case.ct is not nodes.ct:
            display.SetVisibility(False)
    nodes.segmentation.GetDisplayNode().SetVisibility(True)
    if nodes.ct is not None and not is_in_views(nodes.ct):
        show_in_views(nodes.ct)


def go_to_organs(nodes: CaseNodes) -> bool:
    """Show the slice with the most organs in each slice view; returns False if there are no organs."""
    position = find_organ_position(nodes)
    if position is None:
        return False
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
    return True


def find_organ_position(nodes: CaseNodes) -> tuple[float, float, float] | None:
    """The point (world RAS, mm) whose slices along the CT's axes show the most organs; None without organs."""
    if nodes.automatic is None or nodes.automatic.GetImageData() is None:
        return None
    labels = slicer.util.arrayFromVolume(nodes.automatic)
    # Every second voxel is enough: the position matters only to about a centimeter.
    labels = labels[::2, ::2, ::2]
    present = [label for label in np.unique(labels).tolist() if label]
    if not present:
        return None
    votes = [np.zeros(length) for length in labels.shape]
    for label in present:
        mask = labels == label
        for axis in range(3):
            area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
            # Normalized, so that a small organ counts as much as the liver.
            votes[axis] += area / area.max()
    z, y, x = (2 * int(vote.argmax()) for vote in votes)
    right, anterior, superior, _ = get_ijk_to_ras(nodes.automatic).MultiplyPoint((x, y, z, 1.0))
    return to_world(nodes.automatic, (right, anterior, superior))
