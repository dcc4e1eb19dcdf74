"""The picture of a case drawn by matplotlib alone: the fallback where Slicer's views cannot be rendered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DCASegmentationLib.figures.case import CaseResult, Panel, finest_level, organs_in, organs_missing
from DCASegmentationLib.figures.depth_view import draw_depth_view
from DCASegmentationLib.figures.drawn_views import add_experts, add_map, add_organs, draw_ct
from DCASegmentationLib.figures.layout import Picture, row_pixels, write_picture
from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.figures.planes import Plane, choose_planes
from DCASegmentationLib.organs import Vocabulary

SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
MAP_OPACITY = 0.6
FILL_OPACITY = 0.25
WHITE = (255, 255, 255)


def draw_case(
    path: Path, ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, title: str, subtitle: str = ""
) -> None:
    """Write the picture of a case to ``path`` (PNG) without OpenGL and without slicer-core. Raises OutputError."""
    planes = choose_planes(ct, result.labels)
    found = organs_in(result.labels, vocabulary)
    picture = Picture(
        title=title,
        subtitle=subtitle,
        views=_views(ct, result, vocabulary, planes),
        maps=_maps(ct, result, vocabulary, planes["axial"]),
        organs=found,
        missing=organs_missing(result, vocabulary),
    )
    write_picture(picture, path)


def view_sizes(planes: dict[str, Plane]) -> dict[str, tuple[int, int]]:
    """Pixels (columns, rows) of the panels of the first row: the three planes and the 3D view."""
    names = [*planes, "3d"]
    aspects = [*(plane.aspect for plane in planes.values()), planes["coronal"].aspect]
    return dict(zip(names, row_pixels(aspects), strict=True))


def map_titles(result: CaseResult) -> dict[str, str]:
    """Titles of the panels of the second row that ``result`` has maps for, by "head", "medium", "tail", "expert"."""
    titles = {}
    level = finest_level(result.attention)
    if level is not None:
        titles = {name: f"Attention: {name} expert" for _, name, _ in EXPERTS}
    if result.deciding_expert is not None:
        titles["expert"] = "Expert that decided"
    return titles


def plane_panel(pixels: np.ndarray, plane: Plane, title: str) -> Panel:
    """A panel of a slice view, RGB pixels (rows, columns, 3), with its side letters and scale."""
    left, right = SIDES[plane.orientation]
    return Panel(pixels, title, left, right, plane.width_mm / pixels.shape[1])


def _views(ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, planes: dict[str, Plane]) -> list[Panel]:
    sizes = view_sizes(planes)
    panels = []
    for name, plane in planes.items():
        view = draw_ct(ct, plane, sizes[name])
        view = add_organs(view, result.labels, vocabulary, plane, FILL_OPACITY, thickness=2)
        panels.append(plane_panel(view, plane, name.capitalize()))
    columns, rows = sizes["3d"]
    coarse = draw_depth_view(result.labels, vocabulary, planes["coronal"], (columns // 2, rows // 2))
    panels.append(Panel(coarse.repeat(2, axis=0).repeat(2, axis=1), "Organs from the front", *SIDES["coronal"]))
    return panels


def _maps(ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, plane: Plane) -> list[Panel]:
    titles = map_titles(result)
    sizes = row_pixels([plane.aspect] * 4)
    level = finest_level(result.attention)
    panels = []
    for (name, title), size in zip(titles.items(), sizes, strict=False):
        view = draw_ct(ct, plane, size)
        if name == "expert" and result.deciding_expert is not None:
            view = add_experts(view, result.deciding_expert, plane, MAP_OPACITY)
        elif level is not None:
            view = add_map(view, result.attention[level][name], plane, "Viridis", MAP_OPACITY)
        view = add_organs(view, result.labels, vocabulary, plane, fill=0.0, thickness=1, color=WHITE)
        panels.append(plane_panel(view, plane, title))
    return panels
