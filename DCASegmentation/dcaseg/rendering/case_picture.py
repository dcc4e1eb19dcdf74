"""The picture of a case, drawn with matplotlib: the fallback if Slicer's views cannot be rendered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..organs import Vocabulary
from .body import compute_body_mask
from .layout import (
    EXPERT_TITLES,
    EXPERTS,
    CaseResult,
    Panel,
    Picture,
    color_table,
    compute_panel_sizes,
    find_missing_organs,
    find_organs,
    get_finest_level,
    write_picture,
)
from .planes import Plane, choose_planes, sample

_LIGHT = np.array([-0.35, 0.45, 0.82])  # from above and slightly from the viewer's left
_BACKGROUND = 255


def draw_depth_view(labels: sitk.Image, vocabulary: Vocabulary, plane: Plane, pixels: tuple[int, int]) -> np.ndarray:
    """The frontmost organ at each pixel, RGB (rows, columns, 3) uint8.

    ``plane`` is a coronal plane whose rectangle is the field of view; ``pixels`` is (columns, rows).
    """
    volume, step = _resample_from_front(labels, plane, pixels)
    occupied = volume > 0
    depth = np.argmax(occupied, axis=0)
    hit = occupied.any(axis=0)
    organ = np.take_along_axis(volume, depth[None], axis=0)[0]
    view = np.full((*hit.shape, 3), _BACKGROUND, dtype=np.uint8)
    light = _compute_shading(np.where(hit, depth, depth[hit].max(initial=0)).astype(float) * step)
    for entry in vocabulary:
        is_organ = hit & (organ == entry.label)
        view[is_organ] = np.clip(np.array(entry.color) * light[is_organ][:, None], 0, 255).astype(np.uint8)
    return view


def _resample_from_front(labels: sitk.Image, plane: Plane, pixels: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The labels resampled to (depth from front to back, rows, columns), and the step in depth: one pixel, in mm."""
    columns, rows = pixels
    step = plane.width_mm / columns
    front, back = _compute_depth_range(labels)
    layers = max(1, int((back - front) / step))
    first = (-plane.center[0] - plane.width_mm / 2, front, plane.center[2] + plane.height_mm / 2)
    # The columns of the direction matrix in LPS: to the patient's left, down, and back.
    directions = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
    cut = sitk.Resample(
        labels, (columns, rows, layers), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor,
        first, (step, plane.height_mm / rows, step), directions, 0.0,
    )  # fmt: skip
    return sitk.GetArrayFromImage(cut), step


def _compute_depth_range(labels: sitk.Image) -> tuple[float, float]:
    """The y coordinates (LPS, mm) of the front and the back of the image."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in labels.GetSize()])).reshape(3, -1).T
    y = [labels.TransformIndexToPhysicalPoint([int(i) for i in corner])[1] for corner in corners]
    return min(y), max(y)


def _compute_shading(depth_mm: np.ndarray) -> np.ndarray:
    """The brightness from the angle between light and surface; the slope is limited at the edges of organs."""
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(depth_mm), 1.5))
    down, right = np.gradient(np.minimum(smooth, depth_mm + 4.0))
    normal = np.stack([np.clip(right, -3, 3), -np.clip(down, -3, 3), np.ones_like(smooth)])
    normal /= np.linalg.norm(normal, axis=0)
    return 0.35 + 0.8 * np.clip(np.tensordot(_LIGHT, normal, axes=1), 0.0, 1.0)


_LOW_HU, _HIGH_HU = -160.0, 240.0
_AIR = -1024.0


def draw_ct(ct: sitk.Image, plane: Plane, pixels: tuple[int, int]) -> np.ndarray:
    """The CT on ``plane`` in the abdominal window, RGB (rows, columns, 3) uint8; ``pixels`` is (columns, rows)."""
    values = sample(ct, plane, pixels, "linear", _AIR).astype(np.float32)
    gray = np.clip((values - _LOW_HU) / (_HIGH_HU - _LOW_HU), 0.0, 1.0) * 255.0
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def add_map(
    view: np.ndarray, image: sitk.Image, plane: Plane, colors: str, opacity: float, body: sitk.Image
) -> np.ndarray:
    """``view`` blended, within ``body``, with a map of values from 0 to 1 in the color map ``colors``."""
    values = sample(image, plane, _get_size(view), "linear", -1.0)
    table = color_table(colors)
    index = np.clip(np.rint(values * (len(table) - 1)), 0, len(table) - 1).astype(int)
    inside = sample(body, plane, _get_size(view), "nearest", 0.0) > 0
    return _blend(view, table[index], inside & (values >= 0.0), opacity)


def add_experts(view: np.ndarray, dominant_expert: sitk.Image, plane: Plane, opacity: float) -> np.ndarray:
    """``view`` with the voxels of organs tinted in the color of their dominant expert."""
    values = sample(dominant_expert, plane, _get_size(view), "nearest", 0.0)
    for value, _, color in EXPERTS:
        view = _blend(view, np.array(color, dtype=float), values == value, opacity)
    return view


def add_organs(
    view: np.ndarray,
    labels: sitk.Image,
    vocabulary: Vocabulary,
    plane: Plane,
    fill: float,
    thickness: int,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """``view`` with outlined organs, ``thickness`` pixels wide, filled with the opacity ``fill``.

    Each organ has its own color, or all have ``color``.
    """
    values = sample(labels, plane, _get_size(view), "nearest", 0.0)
    for organ in vocabulary:
        inside = values == organ.label
        if not inside.any():
            continue
        paint = np.array(color or organ.color, dtype=float)
        view = _blend(view, paint, inside, fill)
        view = _blend(view, paint, inside & ~_erode(inside, thickness), 1.0)
    return view


def _get_size(view: np.ndarray) -> tuple[int, int]:
    return view.shape[1], view.shape[0]


def _blend(view: np.ndarray, color: np.ndarray, where: np.ndarray, opacity: float) -> np.ndarray:
    mixed = view * (1.0 - opacity) + color * opacity
    return np.where(where[..., None], mixed, view).astype(np.uint8)


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
MAP_OPACITY = 0.6
FILL_OPACITY = 0.25
WHITE = (255, 255, 255)


def draw_case(
    path: Path, ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, title: str, subtitle: str = ""
) -> None:
    """Write the picture of a case to ``path`` (PNG), without OpenGL or slicer-core. Raises OutputError."""
    planes = choose_planes(ct, result.labels)
    organs = find_organs(result.labels, vocabulary)
    picture = Picture(
        title=title,
        subtitle=subtitle,
        views=_draw_views(ct, result, vocabulary, planes),
        maps=_draw_maps(ct, result, vocabulary, planes["axial"]),
        organs=organs,
        missing=find_missing_organs(result, vocabulary),
    )
    write_picture(picture, path)


def compute_view_sizes(planes: dict[str, Plane]) -> dict[str, tuple[int, int]]:
    """The size in pixels (columns, rows) of the panels in the first row: the three planes and the 3D view."""
    names = [*planes, "3d"]
    aspects = [*(plane.aspect for plane in planes.values()), planes["coronal"].aspect]
    return dict(zip(names, compute_panel_sizes(aspects), strict=True))


def map_titles(result: CaseResult) -> dict[str, str]:
    """The titles of the second row's panels for the maps in ``result``, by "head", "medium", "tail", "expert"."""
    titles = {}
    level = get_finest_level(result.attention)
    if level is not None:
        titles = {name: f"Attention: {EXPERT_TITLES[name].lower()}" for _, name, _ in EXPERTS}
    if result.dominant_expert is not None:
        titles["expert"] = "Dominant expert"
    return titles


def make_plane_panel(pixels: np.ndarray, plane: Plane, title: str) -> Panel:
    """A panel of a slice view with RGB pixels (rows, columns, 3), side letters and scale."""
    left, right = SIDES[plane.orientation]
    return Panel(pixels, title, left, right, plane.width_mm / pixels.shape[1])


def _draw_views(ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, planes: dict[str, Plane]) -> list[Panel]:
    sizes = compute_view_sizes(planes)
    panels = []
    for name, plane in planes.items():
        view = draw_ct(ct, plane, sizes[name])
        view = add_organs(view, result.labels, vocabulary, plane, FILL_OPACITY, thickness=2)
        panels.append(make_plane_panel(view, plane, name.capitalize()))
    columns, rows = sizes["3d"]
    coarse = draw_depth_view(result.labels, vocabulary, planes["coronal"], (columns // 2, rows // 2))
    panels.append(Panel(coarse.repeat(2, axis=0).repeat(2, axis=1), "Organs from the front", *SIDES["coronal"]))
    return panels


def _draw_maps(ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, plane: Plane) -> list[Panel]:
    titles = map_titles(result)
    sizes = compute_panel_sizes([plane.aspect] * 4)
    level = get_finest_level(result.attention)
    body = compute_body_mask(ct)
    panels = []
    for (name, title), size in zip(titles.items(), sizes, strict=False):
        view = draw_ct(ct, plane, size)
        if name == "expert" and result.dominant_expert is not None:
            view = add_experts(view, result.dominant_expert, plane, MAP_OPACITY)
        elif level is not None:
            view = add_map(view, result.attention[level][name], plane, "Viridis", MAP_OPACITY, body)
        view = add_organs(view, result.labels, vocabulary, plane, fill=0.0, thickness=1, color=WHITE)
        panels.append(make_plane_panel(view, plane, title))
    return panels
