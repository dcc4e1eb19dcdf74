"""What is known about each voxel near a click: the features from which ``click_classifier`` tells wrong voxels.

Users click the middle of an error. So a click says more than "this voxel is wrong": how far it lies from the border of
the mask is about the thickness of the error, and most voxels around it with the same intensity are wrong, too. A click
on the border itself says that the border is off along some of its length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .view import FloatArray, Mask, View, ViewStroke, compute_signed_distance, smooth_image

_HU = (-200.0, 350.0)
_MAX_ODDS = 4.0
MAX_DISTANCE_MM = 48.0
"""Voxels farther than this from the click do not change."""

_LOCAL_MM = 10.0
_NO_STROKE_MM = np.float32(60.0)
_SHELL_MM = 12.0
_MIN_SD = 15.0
_ALIKE_HU = 30.0
_PLAIN_MM = 20.0
WALKER_SCALE = 2
"""The log-odds of the random walker's answer are this times the feature ``walker``."""
_MASK_SCALES = (3.0, 6.0, 12.0)

FEATURES = (
    # Distances, in mm or relative to the radius of the error.
    "ratio", "log_ratio", "distance", "depth", "depth_mm", "log_radius", "thin", "half_mm", "geodesic",
    "geodesic_ratio",
    # Where the organ is, by the random walker, by intensities, and by the shape of the mask.
    "walker", "walker_click", "walker_share", "local", "local_click", "middle", "contrast", "hu_1", "hu_3",
    "alike_share", "gradient", "filled_3", "filled_6", "filled_12", "filled_3_click", "filled_6_click",
    "filled_12_click", "first_mask",
    # Other segments, other clicks, and the size of the organ.
    "others", "others_click", "same_clicks", "opposite_clicks", "nearest_same", "nearest_opposite", "adds", "size",
    "expected_size",
)  # fmt: skip
"""Names of the features, in the order of the columns of ``Evidence.features``."""


@dataclass(frozen=True)
class ClickFeatures:
    """The features of the voxels that the latest click may change.

    ``candidates`` (z, y, x): these voxels. ``features`` (n, len(FEATURES)), float32 or float16: one line for each of
    them, in the order of ``candidates``. ``distance`` (n,): their distance to the click in mm. ``click`` (z, y, x): the
    voxels of the click. ``mask_voxels``: the size of the organ's mask in the view. ``voxel_ml``: that of a voxel.
    """

    candidates: Mask
    features: NDArray[np.floating]
    distance: FloatArray
    click: Mask
    mask_voxels: int
    voxel_ml: float


def compute_evidence(view: View, walker: FloatArray) -> ClickFeatures:
    """Return the evidence on the latest click of ``view``; ``walker`` (z, y, x) is the random walker's answer.

    If the mask is empty, the radius of the error is unknown, and that of the organ's usual volume takes its place.
    """
    click, spacing = view.strokes[-1], view.grid.spacing
    adds = click.adds
    sign = np.float32(1.0 if adds else -1.0)
    radius, half = compute_error_radius(view)
    seeds = np.zeros(view.mask.shape, bool)
    seeds[tuple(click.voxels.T)] = True
    distance = view.compute_distance(click)
    usual = _get_usual_radius(view)
    border = compute_signed_distance(view.mask, spacing)
    depth = sign * (border - np.float32(half))
    candidates = (view.mask != adds) & ~view.make_seed_mask(not adds) & (distance <= MAX_DISTANCE_MM)
    if view.mask.any():
        candidates &= depth <= 4.0 * (radius + half) + 6.0
    candidates |= seeds & (view.mask != adds)

    hu = smooth_image(np.clip(view.hu, *_HU), spacing, 1.0)
    hu_3 = smooth_image(np.clip(view.hu, *_HU), spacing, 3.0)
    near = distance <= max(2 * half, 0.7 * radius if view.mask.any() else 2 * half)
    hu_click, hu_3_click = float(np.median(hu[near])), float(np.median(hu_3[seeds]))
    local, middle, contrast = _compare_local_intensities(view, hu, border)
    odds = sign * np.clip(_log_odds(walker), -_MAX_ODDS, _MAX_ODDS)
    gradient = _compute_gradient_magnitude(view.hu, spacing)
    geodesic = _compute_geodesic_distance(view, hu, hu_click, candidates, seeds)
    filled = [smooth_image(view.mask.astype(np.float32), spacing, scale) for scale in _MASK_SCALES]

    at = candidates
    d = distance[at]
    order = np.argsort(d, kind="stable")
    ratio = d / np.float32(radius + half)

    def share(condition: Mask) -> FloatArray:
        """Return for each candidate the share of the candidates not farther from the click that fulfill it."""
        mean = np.empty(len(d), np.float32)
        mean[order] = np.cumsum(condition[at][order]) / np.arange(1, len(d) + 1)
        return mean

    def at_click(array: FloatArray) -> FloatArray:
        return np.full(len(d), float(np.mean(array[seeds])), np.float32)

    def plain(value: float) -> FloatArray:
        return np.full(len(d), value, np.float32)

    def nearest(same: bool) -> FloatArray:
        others = [stroke.voxels for stroke in view.strokes[:-1] if stroke.adds == (adds == same)]
        other = view.compute_distance(ViewStroke(np.concatenate(others), adds, None))[at] if others else _NO_STROKE_MM
        return np.clip(np.log((other + half) / (d + half)), -2.0, 2.0)

    counts = [sum(1 for stroke in view.strokes[:-1] if stroke.adds == (adds == same)) for same in (True, False)]
    mask_voxels, voxel_ml = int(np.count_nonzero(view.mask)), view.grid.volume_ml_per_voxel
    own = compute_ball_radius(mask_voxels * voxel_ml)
    columns: dict[str, FloatArray] = {
        "ratio": np.minimum(ratio, 8.0) / 4,
        "log_ratio": np.minimum(np.log1p(ratio), 3.0),
        "distance": d / 20,
        "depth": np.clip(depth[at] / (radius + half), 0.0, 4.0),
        "depth_mm": np.minimum(depth[at], 30.0) / 10,
        "log_radius": plain(np.log(radius)),
        "thin": plain(min(radius / half, 6.0) / 3),
        "half_mm": plain(half),
        "geodesic": np.minimum(geodesic[at], 90.0) / 30,
        "geodesic_ratio": np.minimum(np.log1p(geodesic[at] / (radius + half)), 4.0),
        "walker": odds[at] / WALKER_SCALE,
        "walker_click": at_click(odds) / np.float32(WALKER_SCALE),
        "walker_share": share(odds > 0),
        "local": sign * local[at],
        "local_click": sign * at_click(local),
        "middle": sign * middle[at],
        "contrast": contrast[at],
        "hu_1": np.minimum(np.abs(hu[at] - hu_click), 120.0) / 40,
        "hu_3": np.minimum(np.abs(hu_3[at] - hu_3_click), 120.0) / 40,
        "alike_share": share(np.abs(hu - hu_click) < _ALIKE_HU),
        "gradient": np.minimum(gradient[at], 60.0) / 20,
        "first_mask": (view.first_mask[at] == adds).astype(np.float32),
        "others": view.others[at].astype(np.float32),
        "others_click": at_click(view.others.astype(np.float32)),
        "same_clicks": plain(min(counts[0], 5) / 3),
        "opposite_clicks": plain(min(counts[1], 5) / 3),
        "nearest_same": nearest(True),
        "nearest_opposite": nearest(False),
        "adds": plain(float(adds)),
        "size": plain(np.log(max(radius, half) / own) if view.mask.any() else 0.0),
        "expected_size": plain(np.log(own / usual) if view.mask.any() and view.expected_ml is not None else 0.0),
    }
    for scale, array in zip(_MASK_SCALES, filled, strict=True):
        # The share of the surroundings that is as the click wants this voxel to be.
        wanted = array if adds else 1 - array
        columns[f"filled_{scale:.0f}"] = wanted[at]
        columns[f"filled_{scale:.0f}_click"] = at_click(wanted)
    features = np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)
    return ClickFeatures(candidates, features, d, seeds, mask_voxels, voxel_ml)


def compute_error_radius(view: View) -> tuple[float, float]:
    """Return the radius of the error that the latest click of ``view`` is on, and half a voxel, in mm."""
    click, half = view.strokes[-1], 0.5 * float(np.prod(view.grid.spacing)) ** (1 / 3)
    if click.radius_mm is None:
        return _get_usual_radius(view), half
    if not view.mask.any():
        return click.radius_mm, half
    # Distances are 0 in the outermost voxels of the mask, but its border lies half a voxel farther out.
    return (max(click.radius_mm - half, half) if click.adds else click.radius_mm + half), half


def _get_usual_radius(view: View) -> float:
    return _PLAIN_MM if view.expected_ml is None else compute_ball_radius(view.expected_ml)


def compute_ball_radius(ml: float) -> float:
    """Return the radius (mm) of a ball of ``ml``, at least 3 mm."""
    return float(max((3 * ml * 1000 / (4 * np.pi)) ** (1 / 3), 3.0))


def _log_odds(probability: FloatArray) -> FloatArray:
    share = np.clip(probability, 1e-3, 1 - 1e-3)
    return np.log(share / (1 - share)).astype(np.float32)


def _compare_local_intensities(
    view: View, hu: FloatArray, border: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compare each voxel's HU with the mean inside the mask near it and with that of the shell around the mask.

    Return the log-likelihood ratio of inside to shell (-4 to 4), the position between the two means (-2 to 2, positive
    on the side of the inside), and the contrast between them, 0 to 3, all (z, y, x).
    """
    inside = view.mask & ~view.make_seed_mask(False)
    shell = ~view.mask & (border < _SHELL_MM) & ~view.make_seed_mask(True)
    mean_in, variance_in = _compute_local_statistics(hu, inside, view.grid.spacing)
    mean_out, variance_out = _compute_local_statistics(hu, shell, view.grid.spacing)
    ratio = (hu - mean_out) ** 2 / variance_out - (hu - mean_in) ** 2 / variance_in + np.log(variance_out / variance_in)
    difference = mean_in - mean_out
    middle = (hu - 0.5 * (mean_in + mean_out)) * difference / (difference**2 + 20.0**2)
    return (
        np.clip(0.5 * ratio, -_MAX_ODDS, _MAX_ODDS),
        np.clip(middle, -2.0, 2.0),
        np.minimum(np.abs(difference) / 40, 3.0),
    )


def _compute_local_statistics(
    hu: FloatArray, region: Mask, spacing: tuple[float, float, float]
) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance (z, y, x) of ``hu`` in ``region``, weighted by the distance to each voxel."""
    if not region.any():
        region = np.ones_like(region)
    weight = region.astype(np.float32)
    share = smooth_image(weight, spacing, _LOCAL_MM)
    overall, spread = float(hu[region].mean()), float(hu[region].var())
    # Far from the region, the weights vanish, and its overall mean takes over.
    few = np.float32(1e-2)
    mean = (smooth_image(weight * hu, spacing, _LOCAL_MM) + few * overall) / np.maximum(share + few, few)
    square = smooth_image(weight * (hu - overall) ** 2, spacing, _LOCAL_MM) + few * spread
    variance = square / np.maximum(share + few, few) - (mean - overall) ** 2
    return mean, np.maximum(variance, _MIN_SD**2)


def _compute_gradient_magnitude(hu: FloatArray, spacing: tuple[float, float, float]) -> FloatArray:
    image = sitk.GetImageFromArray(np.clip(hu, *_HU).astype(np.float32))
    image.SetSpacing(spacing)
    if min(hu.shape) < 4:
        return np.zeros(hu.shape, np.float32)
    return sitk.GetArrayFromImage(sitk.GradientMagnitudeRecursiveGaussian(image, 2.0))


def _compute_geodesic_distance(
    view: View, hu: FloatArray, hu_click: float, candidates: Mask, seeds: Mask
) -> FloatArray:
    """Return the geodesic distance (mm) to the click: longer through other intensities, and through other voxels."""
    speed = 1 / (1 + ((hu - np.float32(hu_click)) / np.float32(25.0)) ** 2) + np.float32(0.02)
    speed = np.where(candidates | seeds, speed, np.float32(0.3) * speed)
    image = view.grid.make_image(speed.astype(np.float32))
    marching = sitk.FastMarchingImageFilter()
    marching.SetTrialPoints([tuple(int(each) for each in voxel[::-1]) for voxel in np.argwhere(seeds)])
    marching.SetStoppingValue(100.0)
    found = sitk.GetArrayFromImage(marching.Execute(image))
    return np.minimum(found, 100.0).astype(np.float32)
