"""Operations on volumes (z, y, x) with a spacing (x, y, z) in mm."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Spacing = tuple[float, float, float]
Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
Slices = tuple[slice, slice, slice]


def compute_bounding_box(mask: Mask, spacing: Spacing, margin_mm: float = 0.0) -> Slices | None:
    """The bounding box of ``mask`` with a margin of ``margin_mm``; None for an empty mask."""
    ranges = []
    for axis, step in enumerate(spacing[::-1]):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if not len(hits):
            return None
        margin = int(np.ceil(margin_mm / step))
        ranges.append(slice(max(int(hits[0]) - margin, 0), min(int(hits[-1]) + margin + 1, mask.shape[axis])))
    return ranges[0], ranges[1], ranges[2]


def compute_signed_distance(mask: Mask, spacing: Spacing) -> Field:
    """Distance in mm to the surface of ``mask``, negative inside; 1e3 everywhere for an empty mask."""
    if not mask.any():
        return np.full(mask.shape, 1e3, np.float32)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing)
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))


def apply_closing(mask: Mask, spacing: Spacing, radius_mm: float) -> Mask:
    """Morphological closing of ``mask`` with a ball of ``radius_mm``."""
    grown = compute_signed_distance(mask, spacing) <= radius_mm
    return (compute_signed_distance(~grown, spacing) > radius_mm) | mask


def smooth_gaussian(field: Field, spacing: Spacing, sigma_mm: tuple[float, float, float]) -> Field:
    """Gaussian smoothing with an SD of ``sigma_mm`` (x, y, z)."""
    image = sitk.GetImageFromArray(field.astype(np.float32))
    image.SetSpacing(spacing)
    for axis, sigma in enumerate(sigma_mm):
        if sigma > 0:
            image = sitk.RecursiveGaussian(image, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    return sitk.GetArrayFromImage(image)


def generate_noise(
    shape: tuple[int, int, int], spacing: Spacing, sigma_mm: float, random: np.random.Generator
) -> Field:
    """Gaussian noise smoothed with an SD of ``sigma_mm``, scaled to mean 0 and SD 1."""
    field = smooth_gaussian(random.standard_normal(shape, dtype=np.float32), spacing, (sigma_mm,) * 3)
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def compute_hull_distance(mask: Mask, spacing: Spacing) -> Field:
    """Distance in mm to the convex hull of each axial slice of ``mask``, negative inside; 1e3 in empty slices."""
    depth, height, width = mask.shape
    x = (np.arange(width) * spacing[0]).astype(np.float32)
    y = (np.arange(height) * spacing[1]).astype(np.float32)
    result = np.full(mask.shape, 1e3, np.float32)
    for k in range(depth):
        corners = _compute_convex_hull(_find_row_ends(mask[k], spacing))
        if len(corners) < 3:
            continue
        following = np.roll(corners, -1, axis=0)
        edges = following - corners
        lengths = np.hypot(edges[:, 0], edges[:, 1])
        normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / lengths[:, None]
        plane = np.full((height, width), -1e6, np.float32)
        for (nx, ny), (cx, cy) in zip(normals, corners, strict=True):
            np.maximum(plane, nx * (x - cx)[None] + ny * (y - cy)[:, None], out=plane)
        result[k] = plane
    return result


def _find_row_ends(plane: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """First and last point of each row, in mm (x, y): the candidates for the convex hull."""
    rows = np.flatnonzero(plane.any(axis=1))
    first = plane[rows].argmax(axis=1)
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([first, rows], axis=1), np.stack([last, rows], axis=1)])
    return np.unique(points, axis=0) * np.array(spacing[:2])


def _compute_convex_hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The convex hull of sorted points (x, y), counterclockwise (Andrew's monotone chain)."""

    def half(ordered: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        chain: list[NDArray[np.float64]] = []
        for point in ordered:
            while len(chain) > 1:
                a, b = chain[-1] - chain[-2], point - chain[-2]
                if a[0] * b[1] - a[1] * b[0] > 0:
                    break
                chain.pop()
            chain.append(point)
        return chain[:-1]

    if len(points) < 3:
        return points
    return np.array(half(points) + half(points[::-1]))
