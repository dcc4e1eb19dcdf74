"""The engine without a network: a random walker with priors.

Leo Grady, Multilabel random walker image segmentation using prior models, CVPR 2005. Each voxel gets the probability
that a random walker starting there ends in the organ rather than outside of it. The walker rarely crosses intensity
edges, and in each voxel it may also end according to the voxel's prior. The prior combines the evidence that does not
depend on neighbors: the distance to the border of the current mask, trusted less near a stroke; the intensities inside
the mask, around it, and around the stroke; the distance to the stroke; and other segments. The minimization is one
symmetric, positive definite system, solved by conjugate gradients starting from the current mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .view import FloatArray, Mask, View, ViewStroke, compute_signed_distance, smooth_image

# Range of the histograms in HU. Outside of it lie air and bone, which do not distinguish soft organs.
_HU = (-200.0, 350.0)
_BINS = 55
_SEED_WEIGHT = 50.0
# A shell around a stroke with at least this share of different voxels lies outside the organ.
_FOREIGN_SHARE = 0.35


@dataclass(frozen=True)
class RandomWalkerOptions:
    """Weights of the evidence, in log-odds unless stated otherwise. ``Resources/Docs/measurements/clicks.md`` explains
    the choice.

    ``mask``: weight of a voxel deep inside the mask or far outside. ``mask_mm``: distance to the border over which the
    weight increases. ``trust``: share of the weight that remains at the stroke. ``trust_radii``: distance from the
    stroke, in radii of the error, over which the weight recovers.
    ``intensity``: factor of the log-likelihood ratio of the intensities. ``stroke_share``: weight of the samples around
    the stroke in the intensity model of its side; all other samples together have weight 1. ``inside_mm``,
    ``outside_mm``: samples of the inside lie deeper than the first distance, those of the outside between the two.
    ``stroke``: weight at the stroke. ``stroke_radii``: radii over which it decreases.
    ``others``: weight against voxels of other segments.
    ``farthest_mm``: beyond this distance from the mask, growth has a cost, unless the mask is empty.
    ``bias``: weight of all voxels.
    ``smoothing_mm``: sigma of the smoothing of the CT. ``contrast``: an edge has the weight exp(-contrast * HU^2).
    ``prior``: weight of the prior relative to the edges.
    ``radius_mm``: smallest and largest radius of the error. For a missing organ the radius is the geometric mean of
    ``missing_mm`` and the radius around the stroke in which most voxels are within ``alike_hu`` of it.
    ``reach_mm``, ``reach_radii``: no voxel changes farther from the latest stroke than both of these distances. If more
    than the share ``max_changed_fraction`` of the organ would change, none does beyond ``near_mm`` and three radii.
    ``iterations``: maximum number of iterations of the conjugate gradients.
    """

    mask: float = 2.3
    mask_mm: float = 7.0
    trust: float = 0.6
    trust_radii: float = 1.5
    intensity: float = 1.9
    stroke_share: float = 0.45
    inside_mm: float = 2.9
    outside_mm: float = 19.0
    stroke: float = 4.3
    stroke_radii: float = 2.1
    others: float = 1.0
    farthest_mm: float = 3.0
    bias: float = -0.5
    smoothing_mm: float = 0.61
    contrast: float = 0.0014
    prior: float = 0.16
    radius_mm: tuple[float, float] = (3.0, 25.0)
    missing_mm: float = 11.0
    alike_hu: float = 40.0
    reach_mm: float = 41.0
    reach_radii: float = 1.5
    max_changed_fraction: float = 0.35
    near_mm: float = 10.0
    iterations: int = 60


class RandomWalkerEngine:
    """The random walker with priors; see the module. The default ``options`` gave the best results in measurements."""

    name = "random_walker"

    def __init__(self, options: RandomWalkerOptions = RandomWalkerOptions()) -> None:
        self._options = options

    def predict_foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``."""
        spacing = view.grid.spacing
        hu = smooth_image(np.clip(view.hu, *_HU), spacing, self._options.smoothing_mm)
        strokes = [self._measure_stroke(view, stroke) for stroke in view.strokes]
        prior = self._compute_prior(view, hu, strokes)
        weight = np.full(prior.shape, self._options.prior, np.float32)
        for adds in (True, False):
            seeds = view.make_seed_mask(adds)
            weight[seeds], prior[seeds] = _SEED_WEIGHT, float(adds)
        start = view.mask.astype(np.float32)
        found = solve(hu, spacing, prior, weight, self._options.contrast, start, self._options.iterations)
        distance, radius = strokes[-1]
        reach = max(self._options.reach_mm, self._options.reach_radii * radius)
        answer = np.where(distance <= reach, found, start)
        changed = int(np.count_nonzero((answer > 0.5) != view.mask))
        if changed > self._options.max_changed_fraction * max(int(np.count_nonzero(view.mask)), 1) and view.mask.any():
            # A click this close to the border is hardly meant to change such a large share of the organ.
            answer = np.where(distance <= max(self._options.near_mm, 3.0 * radius), found, start)
        return remove_new_islands(answer, view)

    def _measure_stroke(self, view: View, stroke: ViewStroke) -> tuple[FloatArray, float]:
        """Return the distance (mm) of each voxel (z, y, x) to ``stroke``, and the radius (mm) of the error around it.

        The radius is estimated from what was known when the stroke was drawn.
        """
        distance = view.compute_distance(stroke)
        smallest, largest = self._options.radius_mm
        if stroke.radius_mm is not None:
            return distance, float(np.clip(stroke.radius_mm, smallest, largest))
        hu = smooth_image(np.clip(view.hu, *_HU), view.grid.spacing, 2.5)
        differs = np.abs(hu - np.median(view.hu[distance <= 3.5])) > self._options.alike_hu
        radius = smallest
        while radius < largest:
            shell = differs[(distance > radius) & (distance <= radius + 2.0)]
            if shell.size and shell.mean() > _FOREIGN_SHARE:
                break
            radius += 1.5
        return distance, float(np.sqrt(radius * self._options.missing_mm))

    def _compute_prior(self, view: View, hu: FloatArray, strokes: Sequence[tuple[FloatArray, float]]) -> FloatArray:
        options = self._options
        spacing = view.grid.spacing
        # The mask before all strokes, so that the answer does not drift with the number of strokes.
        known = view.first_mask if view.first_mask.any() else view.mask
        depth = compute_signed_distance(known, spacing)
        odds = np.zeros(depth.shape, np.float32)
        trust = np.ones(depth.shape, np.float32)
        near = [np.zeros(depth.shape, np.float32), np.zeros(depth.shape, np.float32)]
        nearest = np.full(depth.shape, np.inf, np.float32)
        for stroke, (distance, radius) in zip(view.strokes, strokes, strict=True):
            sign = 1.0 if stroke.adds else -1.0
            trust *= 1 - (1 - options.trust) * np.exp(-((distance / (options.trust_radii * radius)) ** 2))
            odds += sign * options.stroke * np.exp(-0.5 * (distance / (options.stroke_radii * radius)) ** 2)
            near_same = near[int(stroke.adds)]
            np.maximum(near_same, np.exp(-0.5 * (distance / (0.6 * radius)) ** 2), out=near_same)
            if stroke.adds:
                np.minimum(nearest, distance, out=nearest)
        odds += options.mask * np.tanh(-depth / options.mask_mm) * trust
        odds += options.intensity * self._compute_likelihood_ratio(hu, known, depth, near[1], near[0])
        odds -= options.others * (view.others & ~view.mask)
        odds += options.bias
        if known.any():
            # Growth far from the known mask has a cost, unless it is close to a stroke that adds.
            odds -= 0.5 * np.clip(np.minimum(depth, nearest) - options.farthest_mm, 0.0, 10.0)
        return (1 / (1 + np.exp(-odds))).astype(np.float32)

    def _compute_likelihood_ratio(
        self, hu: FloatArray, known: Mask, depth: FloatArray, near_added: FloatArray, near_removed: FloatArray
    ) -> FloatArray:
        """Return the log-likelihood ratio (organ to surroundings) of each voxel's HU (z, y, x)."""
        options = self._options
        inside = depth < -options.inside_mm
        if known.any() and not inside.any():
            inside = depth <= depth.min() + 1.0
        outside = (depth > options.inside_mm) & (depth < options.outside_mm)
        if not outside.any():
            outside = ~known
        organ = _share(inside * (1 - near_removed)) + options.stroke_share * _share(near_added)
        surroundings = _share(outside * (1 - near_added)) + options.stroke_share * _share(near_removed)
        bins = ((hu - _HU[0]) / (_HU[1] - _HU[0]) * (_BINS - 1)).astype(np.int64).clip(0, _BINS - 1)
        ratio = np.log(_compute_histogram(bins, organ) / _compute_histogram(bins, surroundings))
        return np.clip(ratio, -3.0, 3.0).astype(np.float32)[bins]


class SeededRandomWalker:
    """The random walker without priors, as a baseline (Leo Grady, Random walks for image segmentation, PAMI 2006).

    The strokes, the deep inside of the mask and the far outside are seeds; only edges decide in between.
    """

    name = "seeded_random_walker"

    def predict_foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``."""
        spacing = view.grid.spacing
        hu = smooth_image(np.clip(view.hu, *_HU), spacing, 0.5)
        depth = compute_signed_distance(view.mask, spacing)
        distance = view.compute_distance(view.strokes[-1])
        radius = view.strokes[-1].radius_mm
        known = (np.abs(depth) > 4.0) & (distance > 2.0 * (14.0 if radius is None else radius + 2.0))
        if not (known & ~view.mask).any():
            known |= distance >= distance.max() - 1.0
        weight = np.where(known, _SEED_WEIGHT, 1e-4).astype(np.float32)
        prior = view.mask.astype(np.float32)
        for adds in (True, False):
            seeds = view.make_seed_mask(adds)
            weight[seeds], prior[seeds] = _SEED_WEIGHT, float(adds)
        return remove_new_islands(solve(hu, spacing, prior, weight, 0.01, prior.copy(), 200), view)


def solve(
    hu: FloatArray,
    spacing: tuple[float, float, float],
    prior: FloatArray,
    weight: FloatArray,
    contrast: float,
    start: FloatArray,
    iterations: int,
    tolerance: float = 1e-3,
) -> FloatArray:
    """Minimize sum_edges w (x_i - x_j)^2 + sum_voxels weight (x_i - prior_i)^2, w = exp(-contrast (HU_i - HU_j)^2).

    All arrays are (z, y, x), as is the result; ``weight`` is above 0. ``spacing`` is (x, y, z) in mm. Along a coarser
    axis edges weigh less, by the square of the spacing. The solver is conjugate gradients with a diagonal
    preconditioner, starting from ``start``, with at most ``iterations`` iterations. It holds three arrays of edges and
    four of voxels, but no matrix.
    """
    finest = min(spacing)
    edges = []
    diagonal = weight.copy()
    for axis in range(3):
        low, high = _get_edge_slices(axis)
        factor = np.float32((finest / spacing[2 - axis]) ** 2)
        edge = (np.exp(-contrast * (hu[high] - hu[low]) ** 2) + np.float32(1e-3)) * factor
        edges.append(edge)
        diagonal[low] += edge
        diagonal[high] += edge

    def product(x: FloatArray) -> FloatArray:
        y = diagonal * x
        for axis, edge in enumerate(edges):
            low, high = _get_edge_slices(axis)
            y[low] -= edge * x[high]
            y[high] -= edge * x[low]
        return y

    x = start.astype(np.float32).copy()
    right = weight * prior
    residual = right - product(x)
    scaled = residual / diagonal
    direction = scaled.copy()
    error = _dot(residual, scaled)
    limit = tolerance**2 * max(_dot(right, right / diagonal), 1e-12)
    for _ in range(iterations):
        if error <= limit:
            break
        image = product(direction)
        step = np.float32(error / max(_dot(direction, image), 1e-20))
        x += step * direction
        residual -= step * image
        scaled = residual / diagonal
        previous, error = error, _dot(residual, scaled)
        direction *= np.float32(error / previous)
        direction += scaled
    return x


def _get_edge_slices(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the index of the lower and of the upper voxels of all edges along ``axis``."""
    low = tuple(slice(None, -1) if each == axis else slice(None) for each in range(3))
    high = tuple(slice(1, None) if each == axis else slice(None) for each in range(3))
    return low, high


def _dot(one: FloatArray, other: FloatArray) -> float:
    return float(np.dot(one.ravel(), other.ravel()))


def _share(weights: FloatArray) -> FloatArray:
    return weights / max(float(weights.sum()), 1e-6)


def _compute_histogram(bins: NDArray[np.int64], weights: FloatArray) -> NDArray[np.float64]:
    counts = np.bincount(bins.ravel(), weights=weights.ravel(), minlength=_BINS)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    return np.convolve(counts / max(counts.sum(), 1e-9), kernel / kernel.sum(), "same") + 4e-3


def remove_new_islands(found: FloatArray, view: View) -> FloatArray:
    """Return the probability ``found`` (z, y, x) without new islands, and consistent with all strokes.

    New pieces that touch neither the current mask nor a stroke are removed.
    """
    added = view.make_seed_mask(True)
    answer = ((found > 0.5) | added) & ~view.make_seed_mask(False)
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(answer.astype(np.uint8)), True))
    kept = np.zeros(int(pieces.max()) + 1, bool)
    kept[pieces[view.mask | added]] = True
    kept[0] = False
    answer &= kept[pieces]
    # The mask is the probability above one half, so the probability must lie on the right side of it.
    return np.where(answer, np.maximum(found, np.float32(0.51)), np.minimum(found, np.float32(0.49)))
