"""Renders a person's structures on the grid of a scan: HU, labels and noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .anatomy import Anatomy
from .materials import Layered, RenderTarget, Solid
from .person import Contrast
from .scan import Scan, Smooth
from .shapes import Array
from .structure import SampleGrid, Structure, compute_union_distance, create_empty_distance, place

_KERNEL_MM = 0.9
"""SD of the reconstruction kernel that correlates the noise of neighboring voxels."""


def add_noise(hu: Array, spacing: tuple[float, float, float], sd: float, random: np.random.Generator) -> Array:
    """Add Gaussian noise of SD ``sd`` (HU), correlated as by a reconstruction kernel, to ``hu`` (z, y, x).

    ``spacing`` is (x, y, z) in mm.
    """
    if sd <= 0:
        return hu
    noise = random.standard_normal(hu.shape, dtype=np.float32)
    scale = sd
    for axis, mm in zip((2, 1, 0), spacing, strict=True):
        # The kernel (w, 1 - 2 w, w) has the variance 2 w in voxels squared.
        w = float(min((_KERNEL_MM / mm) ** 2 / 2, 0.25))
        blurred = (1 - 2 * w) * noise
        moved = np.moveaxis(blurred, axis, 0)
        source = np.moveaxis(noise, axis, 0)
        moved[1:] += w * source[:-1]
        moved[0] += w * source[0]
        moved[:-1] += w * source[1:]
        moved[-1] += w * source[-1]
        noise = blurred
        scale /= np.sqrt((1 - 2 * w) ** 2 + 2 * w**2)
    noise *= np.float32(scale)
    noise += hu
    return noise


_FINE_MM = 1.5
_MAX_SAMPLES = 3


def paint(
    scan: Scan, anatomy: Anatomy, contrast: Contrast, report: Callable[[float], None]
) -> tuple[Array, NDArray[np.uint8]]:
    """Render HU without noise, and labels, both (z, y, x).

    A boundary in the CT is as wide as a voxel. An axis with much longer voxels is sampled up to three times per voxel
    and averaged. A voxel has the label of the structure that contains its center, or 0. ``report(fraction)`` receives
    the progress.
    """
    finest = max(min(scan.spacing), _FINE_MM)
    factors = tuple(int(np.clip(round(s / finest), 1, _MAX_SAMPLES)) for s in scan.spacing)
    blur = max(s / f for s, f in zip(scan.spacing, factors, strict=True))
    result = np.empty(scan.size[::-1], dtype=np.float32)
    labels = np.zeros(scan.size[::-1], dtype=np.uint8)
    # With an odd number of samples per voxel, the middle one is at the voxel's center.
    centered = all(factor % 2 for factor in factors)
    centers = tuple(slice(factor // 2, None, factor) for factor in factors[::-1])
    for slab, block, smooth in scan.iterate_blocks(anatomy, factors, smooth=True):
        hu = _render_background(block, smooth, contrast, blur)
        sampled = np.zeros(hu.shape, dtype=np.uint8)
        occupied = create_empty_distance(block)
        for structure in anatomy.structures:
            placed = place(structure, block, occupied)
            if placed is None:
                continue
            _paint(structure, block, placed[0], placed[1], hu, smooth, contrast, blur)
            if centered and structure.label:
                sampled[placed[0]][placed[1] < 0] = structure.label
        result[slab] = _average_samples(hu, factors)
        report((1.0 if centered else 0.75) * slab.stop / scan.size[2])
        if centered:
            labels[slab] = sampled[centers]
    return result, labels if centered else paint_labels(scan, anatomy, lambda fraction: report(0.75 + 0.25 * fraction))


def paint_labels(scan: Scan, anatomy: Anatomy, report: Callable[[float], None]) -> NDArray[np.uint8]:
    """Render labels (z, y, x) only. A voxel has the label of the structure that contains its center, or 0."""
    labels = np.zeros(scan.size[::-1], dtype=np.uint8)
    for slab, block, _ in scan.iterate_blocks(anatomy, (1, 1, 1), smooth=False):
        occupied = create_empty_distance(block)
        for structure in anatomy.structures:
            placed = place(structure, block, occupied)
            if placed is not None and structure.label:
                labels[slab][placed[0]][placed[1] < 0] = structure.label
        report(slab.stop / scan.size[2])
    return labels


def _paint(
    structure: Structure, block: SampleGrid, part: tuple[slice, slice, slice], distance: Array, hu: Array,
    smooth: Smooth, contrast: Contrast, blur: float,
) -> None:  # fmt: skip
    canvas = RenderTarget(hu[part], block.y[part], smooth["grain"][part], smooth["cloud"][part], blur, contrast)
    structure.material.paint(canvas, distance)
    for shapes, material in structure.inlays:
        inside = np.maximum(compute_union_distance(shapes, block, part), distance + 2.0)
        material.paint(canvas, inside)


def _render_background(block: SampleGrid, smooth: Smooth, contrast: Contrast, blur: float) -> Array:
    """Render what surrounds the structures: air, table, skin, fat, muscle, ribs and lungs."""
    hu = np.full(block.x.shape, contrast.hu["air"], dtype=np.float32)
    canvas = RenderTarget(hu, block.y, smooth["grain"], smooth["cloud"], blur, contrast)
    Layered("table", "air", 2.5, 0.0).paint(canvas, np.abs(smooth["table"]) - np.float32(7.0))
    skin = smooth["skin"]
    Layered("skin", "fat", 2.0, 5.0).paint(canvas, skin)
    muscle = smooth["muscle"].copy()
    # Fat streaks between the muscles of the back and the hips.
    streak = 1.8 - 9.0 * np.abs(smooth["grain"]) + np.minimum(3.0 * smooth["cloud"], 0.0)
    np.maximum(muscle, np.minimum(streak, -muscle - 14.0), out=muscle)
    Solid("muscle", 5.0).paint(canvas, muscle)
    ribs = _compute_rib_distance(block, smooth)
    Layered("cortical_bone", "cancellous_bone", 1.6, 15.0).paint(canvas, ribs)
    Solid("fat", 4.0).paint(canvas, block.cavity)
    # The diaphragm is a thin muscle. Above it are the lungs, except in the middle with heart, vessels and spine.
    chest = np.maximum(block.cavity, -block.diaphragm - 3.0)
    Solid("muscle", 3.0).paint(canvas, np.maximum(chest, block.diaphragm - 0.5))
    middle = 28.0 - np.hypot(block.x - 4.0, np.minimum(block.y - 10.0, 0.0) * 0.5)
    lung = np.maximum(chest + 3.5, middle)
    lung_texture = contrast.hu["lung"] + 28.0 * smooth["grain"] + 22.0 * smooth["cloud"]
    canvas.blend(lung, lung_texture)
    return hu


def _compute_rib_distance(block: SampleGrid, smooth: Smooth) -> Array:
    """Distance (mm) to the ribs: bars in the chest wall that slope down to the front, shorter further down."""
    angle = smooth["rib_angle"]
    pitch = np.float32(28.0)
    along = block.z + 26.0 * np.sin(np.minimum(angle, 2.2)) * angle - 84.0
    number = np.round(along / pitch)
    across = np.abs(along - number * pitch) - 6.0
    through = np.abs(block.cavity - 7.5) - 3.8
    ends = 70.0 * (angle - np.clip(1.15 + 0.42 * number, 0.0, 2.75))
    below = np.where(number < 0, np.float32(9.0), np.float32(-9.0))
    return np.maximum(np.maximum(np.maximum(across, through), np.maximum(ends, below)), 8.0 - 60.0 * angle)


def _average_samples(hu: Array, factors: tuple[int, ...]) -> Array:
    for axis, factor in zip((2, 1, 0), factors, strict=True):
        if factor > 1:
            shape = (*hu.shape[:axis], hu.shape[axis] // factor, factor, *hu.shape[axis + 1 :])
            hu = hu.reshape(shape).mean(axis=axis + 1)
    return hu
