"""The panels of a case's picture, rendered by Slicer's own views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from DCASegmentationLib.figures.case import Panel, finest_level
from DCASegmentationLib.figures.case_picture import FILL_OPACITY, MAP_OPACITY, SIDES, plane_panel
from DCASegmentationLib.figures.planes import Plane
from DCASegmentationLib.scene.segmentation import add_closed_surfaces
from DCASegmentationLib.scene.session import CaseNodes
from DCASegmentationLib.scene.views import SliceView, ThreeDView

_WHITE = (1.0, 1.0, 1.0)


def render_planes(nodes: CaseNodes, planes: Mapping[str, Plane], sizes: Mapping[str, tuple[int, int]]) -> list[Panel]:
    """The CT on each plane with its organs outlined and faintly filled."""
    panels = []
    for name, plane in planes.items():
        with organs_filled(nodes.segmentation), SliceView(f"DCA {name}", sizes[name]) as view:
            view.show(plane, nodes.ct)
            panels.append(plane_panel(view.pixels(), plane, name.capitalize()))
    return panels


def render_organs(nodes: CaseNodes, pixels: tuple[int, int]) -> Panel:
    """The surfaces of the organs, seen from the front."""
    add_closed_surfaces(nodes.segmentation)
    with ThreeDView("DCA 3D", pixels, _WHITE) as view:
        view.look(azimuth=-15.0, elevation=12.0)
        return Panel(view.pixels(), "Organs from the front", *SIDES["coronal"])


def render_maps(nodes: CaseNodes, titles: Mapping[str, str], plane: Plane, sizes: list[tuple[int, int]]) -> list[Panel]:
    """The attention maps of the finest level, and the deciding expert, over the CT on one plane."""
    level = finest_level(nodes.attention)
    panels = []
    for (name, title), size in zip(titles.items(), sizes, strict=False):
        with organs_outlined_in_white(nodes.segmentation), SliceView(f"DCA {name}", size) as view:
            if name == "expert":
                view.show(plane, nodes.ct, labels=nodes.deciding_expert, opacity=MAP_OPACITY)
            elif level is not None:
                view.show(plane, nodes.ct, overlay=nodes.attention[level][name], opacity=MAP_OPACITY)
            panels.append(plane_panel(view.pixels(), plane, title))
    return panels


@contextmanager
def organs_filled(segmentation: Any) -> Iterator[None]:
    """Organs outlined and faintly filled in their colors, for as long as the context lasts."""
    with _style(segmentation, FILL_OPACITY, thickness=2):
        yield


@contextmanager
def organs_outlined_in_white(segmentation: Any) -> Iterator[None]:
    """Organs thinly outlined in white, which no map uses, for as long as the context lasts."""
    display = segmentation.GetDisplayNode()
    organs = segmentation.GetSegmentation().GetSegmentIDs()
    with _style(segmentation, 0.0, thickness=1):
        for organ in organs:
            display.SetSegmentOverrideColor(organ, *_WHITE)
        try:
            yield
        finally:
            for organ in organs:
                display.UnsetSegmentOverrideColor(organ)


@contextmanager
def _style(segmentation: Any, fill: float, thickness: int) -> Iterator[None]:
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
