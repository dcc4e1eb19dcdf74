"""The picture of a case, rendered offscreen by Slicer's own views or, where that is impossible, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from dcaseg.organs import Vocabulary
from dcaseg.rendering.case_picture import (
    FILL_OPACITY,
    MAP_OPACITY,
    SIDES,
    compute_view_sizes,
    draw_case,
    make_plane_panel,
    map_titles,
)
from dcaseg.rendering.layout import (
    CaseResult,
    Panel,
    Picture,
    compute_panel_sizes,
    find_missing_organs,
    find_organs,
    get_finest_level,
    write_picture,
)
from dcaseg.rendering.planes import Plane, choose_planes
from DCASegmentationLib.scene.headless import find_rendering_problem, get_application_logic
from DCASegmentationLib.scene.scene_builder import CaseNodes
from DCASegmentationLib.scene.segmentation import add_closed_surfaces
from DCASegmentationLib.scene.view_setup import place_slice

_SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
_THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


class _OffscreenView:
    """An offscreen window that renders one view node. Close it to release the node, the window, and the managers."""

    def __init__(self, pixels: tuple[int, int]) -> None:
        self._node: Any = None
        self._group: Any = None
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*pixels)
        self.window.AddRenderer(self.renderer)
        # Displayable managers need an interactor and crash without one.
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)

    def _manage(self, factory: Any, managers: Sequence[str], node: Any) -> None:
        factory.SetMRMLApplicationLogic(get_application_logic())
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._node = node
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.Initialize(factory, self.renderer)
        self._group.SetMRMLDisplayableNode(node)

    def render_pixels(self) -> np.ndarray:
        """Render and return the RGB pixels (rows, columns, 3; uint8), top row first."""
        self.window.Render()
        capture = vtk.vtkWindowToImageFilter()
        capture.SetInput(self.window)
        capture.ReadFrontBufferOff()
        capture.Update()
        image = capture.GetOutput()
        columns, rows, _ = image.GetDimensions()
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
        return np.ascontiguousarray(array[::-1, :, :3])

    def close(self) -> None:
        """Release the view node, the window, and the managers."""
        self._group.SetMRMLDisplayableNode(None)
        slicer.mrmlScene.RemoveNode(self._node)
        self.window.Finalize()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SliceView(_OffscreenView):
    """A slice view of ``pixels`` (columns, rows), empty until :meth:`show`."""

    def __init__(self, name: str, pixels: tuple[int, int]) -> None:
        super().__init__(pixels)
        self._size = pixels
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(get_application_logic())
        self.logic.SetMRMLScene(slicer.mrmlScene)
        node = self.logic.AddSliceNode(name)
        node.SetSaveWithScene(False)
        node.SetDimensions(*pixels, 1)
        self.logic.GetSliceCompositeNode().SetSaveWithScene(False)
        get_application_logic().GetSliceLogics().AddItem(self.logic)
        # 2D props are drawn in the order they are added: the slice must be below what the managers add.
        self._add_slice_image()
        self._manage(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), _SLICE_MANAGERS, node)

    def _add_slice_image(self) -> None:
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(self._mapper)
        self.renderer.AddViewProp(actor)

    def show(self, plane: Plane, ct: Any, overlay: Any = None, labels: Any = None, opacity: float = 0.0) -> None:
        """Show the CT on ``plane``, with an ``overlay`` volume or a ``labels`` map over it at ``opacity`` (0 to 1)."""
        composite = self.logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(ct.GetID())
        composite.SetForegroundVolumeID(overlay.GetID() if overlay else None)
        composite.SetForegroundOpacity(opacity)
        composite.SetLabelVolumeID(labels.GetID() if labels else None)
        composite.SetLabelOpacity(opacity)
        place_slice(self.logic.GetSliceNode(), plane, self._size)
        self.logic.UpdatePipeline()
        # The logic has no output before it has a volume, and its output changes with the layers.
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())

    def close(self) -> None:
        """Release the view and the nodes that its slice logic created."""
        get_application_logic().GetSliceLogics().RemoveItem(self.logic)
        made_by_logic = (
            self.logic.GetSliceCompositeNode(),
            self.logic.GetSliceModelNode(),
            self.logic.GetSliceDisplayNode(),
            self.logic.GetSliceModelTransformNode(),
        )
        # Detach the logic from the scene first, because it would create its nodes again when they are removed.
        self.logic.SetMRMLScene(None)
        super().close()
        for node in made_by_logic:
            slicer.mrmlScene.RemoveNode(node)


class ThreeDView(_OffscreenView):
    """A 3D view of ``pixels`` (columns, rows) on a plain background that shows everything visible in 3D."""

    def __init__(self, name: str, pixels: tuple[int, int], background: tuple[float, float, float]) -> None:
        super().__init__(pixels)
        # Multisampling smooths edges; a 3D view has no text or outlines that it could blur.
        self.window.SetMultiSamples(4)
        self.camera = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCameraNode")
        self.camera.SetSaveWithScene(False)
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLViewNode")
        node.UnRegister(None)
        node.SetName(name)
        node.SetLayoutName(name)
        node.SetSaveWithScene(False)
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
        node.SetBackgroundColor(*background)
        node.SetBackgroundColor2(*background)
        slicer.mrmlScene.AddNode(node)
        self.camera.SetLayoutName(name)
        self._manage(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), _THREE_D_MANAGERS, node)

    def look(self, azimuth: float, elevation: float) -> None:
        """Look from the front, turned toward the patient's left by ``azimuth`` and up by ``elevation`` (degrees)."""
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(0.0, 0.0, 0.0)
        camera.SetPosition(0.0, 1.0, 0.0)
        camera.SetViewUp(0.0, 0.0, 1.0)
        camera.Azimuth(azimuth)
        camera.Elevation(elevation)
        camera.ParallelProjectionOn()
        self.renderer.ResetCamera()
        camera.Zoom(1.35)
        self.renderer.ResetCameraClippingRange()

    def close(self) -> None:
        """Release the view and its camera."""
        super().close()
        slicer.mrmlScene.RemoveNode(self.camera)


_WHITE = (1.0, 1.0, 1.0)


def render_planes(nodes: CaseNodes, planes: Mapping[str, Plane], sizes: Mapping[str, tuple[int, int]]) -> list[Panel]:
    """The CT on each plane with its organs outlined and faintly filled."""
    panels = []
    for name, plane in planes.items():
        with organs_filled(nodes.segmentation), SliceView(f"DCA {name}", sizes[name]) as view:
            view.show(plane, nodes.ct)
            panels.append(make_plane_panel(view.render_pixels(), plane, name.capitalize()))
    return panels


def render_organs(nodes: CaseNodes, pixels: tuple[int, int]) -> Panel:
    """The surfaces of the organs, seen from the front."""
    add_closed_surfaces(nodes.segmentation)
    with ThreeDView("DCA 3D", pixels, _WHITE) as view:
        view.look(azimuth=-15.0, elevation=12.0)
        return Panel(view.render_pixels(), "Organs from the front", *SIDES["coronal"])


def render_maps(nodes: CaseNodes, titles: Mapping[str, str], plane: Plane, sizes: list[tuple[int, int]]) -> list[Panel]:
    """The attention maps of the finest level and the dominant expert over the CT on one plane."""
    level = get_finest_level(nodes.attention)
    panels = []
    for (name, title), size in zip(titles.items(), sizes, strict=False):
        with organs_outlined_in_white(nodes.segmentation), SliceView(f"DCA {name}", size) as view:
            if name == "expert":
                view.show(plane, nodes.ct, labels=nodes.dominant_expert, opacity=MAP_OPACITY)
            elif level is not None:
                view.show(plane, nodes.ct, overlay=nodes.attention[level][name], opacity=MAP_OPACITY)
            panels.append(make_plane_panel(view.render_pixels(), plane, title))
    return panels


@contextmanager
def organs_filled(segmentation: Any) -> Iterator[None]:
    """Within the context, organs are outlined and faintly filled in their colors."""
    with _set_style(segmentation, FILL_OPACITY, thickness=2):
        yield


@contextmanager
def organs_outlined_in_white(segmentation: Any) -> Iterator[None]:
    """Within the context, organs are thinly outlined in white, which no map uses."""
    display = segmentation.GetDisplayNode()
    organs = segmentation.GetSegmentation().GetSegmentIDs()
    with _set_style(segmentation, 0.0, thickness=1):
        for organ in organs:
            display.SetSegmentOverrideColor(organ, *_WHITE)
        try:
            yield
        finally:
            for organ in organs:
                display.UnsetSegmentOverrideColor(organ)


@contextmanager
def _set_style(segmentation: Any, fill: float, thickness: int) -> Iterator[None]:
    display = segmentation.GetDisplayNode()
    before = (display.GetVisibility2DFill(), display.GetOpacity2DFill(), display.GetSliceIntersectionThickness())
    display.SetVisibility2DOutline(True)
    display.SetVisibility2DFill(fill > 0.0)
    display.SetOpacity2DFill(fill)
    display.SetSliceIntersectionThickness(thickness)
    try:
        yield
    finally:
        display.SetVisibility2DFill(before[0])
        display.SetOpacity2DFill(before[1])
        display.SetSliceIntersectionThickness(before[2])


@dataclass(frozen=True)
class RenderedCase:
    """The path of a picture, and why it was drawn by matplotlib (empty if Slicer's views rendered it)."""

    path: Path
    fallback_reason: str


def draw(
    path: Path, ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, title: str, subtitle: str = "",
    nodes: CaseNodes | None = None,
) -> RenderedCase:  # fmt: skip
    """Write the picture of a case as PNG: three slices, the organs in 3D, attention maps, and dominant expert.

    ``nodes`` are those of ``scene_builder.build_scene``; without them the scene is built here.
    Without slicer-core or OpenGL, matplotlib draws the same panels, and the reason is returned.
    Raises OutputError.
    """
    reason = find_rendering_problem()
    if reason:
        draw_case(path, ct, result, vocabulary, title, subtitle)
        return RenderedCase(path, reason)
    write_picture(_render_picture(ct, result, vocabulary, title, subtitle, nodes), path)
    return RenderedCase(path, "")


def _render_picture(
    ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, title: str, subtitle: str, nodes: CaseNodes | None
) -> Picture:
    # Imported here because it needs slicer, and this module must load without it.
    from DCASegmentationLib.scene.scene_builder import build_scene

    nodes = nodes or build_scene(ct, result, vocabulary)
    planes = choose_planes(ct, result.labels)
    sizes = compute_view_sizes(planes)
    axial = planes["axial"]
    found = find_organs(result.labels, vocabulary)
    return Picture(
        title=title,
        subtitle=subtitle,
        views=[*render_planes(nodes, planes, sizes), render_organs(nodes, sizes["3d"])],
        maps=render_maps(nodes, map_titles(result), axial, compute_panel_sizes([axial.aspect] * 4)),
        organs=found,
        missing=find_missing_organs(result, vocabulary),
    )
