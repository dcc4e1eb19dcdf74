"""The one picture of a case: by Slicer's views where they can be rendered, by matplotlib where not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk

from DCASegmentationLib.figures.case import CaseResult, organs_in, organs_missing
from DCASegmentationLib.figures.case_picture import draw_case, map_titles, view_sizes
from DCASegmentationLib.figures.layout import Picture, row_pixels, write_picture
from DCASegmentationLib.figures.planes import choose_planes
from DCASegmentationLib.organs import Vocabulary
from DCASegmentationLib.scene.opengl import rendering_problem

if TYPE_CHECKING:
    from DCASegmentationLib.scene.session import CaseNodes

SYNTHETIC = "Synthetic CT (computed phantom, no patient)"


@dataclass(frozen=True)
class Drawn:
    """Where the picture is, and why it was drawn without Slicer's views (empty when it was drawn by them)."""

    path: Path
    fallback_reason: str


def draw(
    path: Path, ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, title: str, subtitle: str = "",
    nodes: CaseNodes | None = None,
) -> Drawn:  # fmt: skip
    """Write the picture of a case as PNG: three slices and the organs in 3D; attention maps and deciding expert.

    ``nodes`` are those of :func:`DCASegmentationLib.scene.session.build_scene`; without them the scene is built here.
    Needs neither slicer-core nor OpenGL: without them matplotlib draws the same panels, and the reason is returned.
    Raises OutputError.
    """
    reason = rendering_problem()
    if reason:
        draw_case(path, ct, result, vocabulary, title, subtitle)
        return Drawn(path, reason)
    write_picture(_rendered(ct, result, vocabulary, title, subtitle, nodes), path)
    return Drawn(path, "")


def _rendered(
    ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, title: str, subtitle: str, nodes: CaseNodes | None
) -> Picture:
    # Imported here: these modules need slicer, and this one must load without.
    from DCASegmentationLib.scene.rendered_views import render_maps, render_organs, render_planes
    from DCASegmentationLib.scene.session import build_scene

    nodes = nodes or build_scene(ct, result, vocabulary)
    planes = choose_planes(ct, result.labels)
    sizes = view_sizes(planes)
    axial = planes["axial"]
    found = organs_in(result.labels, vocabulary)
    return Picture(
        title=title,
        subtitle=subtitle,
        views=[*render_planes(nodes, planes, sizes), render_organs(nodes, sizes["3d"])],
        maps=render_maps(nodes, map_titles(result), axial, row_pixels([axial.aspect] * 4)),
        organs=found,
        missing=organs_missing(result, vocabulary),
    )
