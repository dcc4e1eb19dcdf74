"""The pieces that a click may change, and which of them it is best to change.

``click_classifier`` gives each voxel the probability that it is wrong. The voxels that are connected to the click
through voxels of at least some probability are a piece; lower probabilities give larger pieces. The probability of a
voxel says little about the others, though: if one voxel of a rind is wrong, most of them are. So other perceptrons see
each piece as a whole, and estimate which share of it is wrong. The one with the largest expected gain of Dice changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .evidence import FEATURES, ClickFeatures
from .view import FloatArray, Mask

_LEVELS = np.linspace(3.5, -1.1, 18)
_THRESHOLDS = 1 / (1 + np.exp(-_LEVELS))
# Features of voxels whose mean describes a piece, and those that are the same for all voxels of a click.
_MEANS = (
    "walker", "local", "middle", "contrast", "hu_1", "gradient", "others", "first_mask", "ratio", "depth", "depth_mm",
    "distance", "filled_3", "filled_6", "geodesic_ratio", "nearest_opposite",
)  # fmt: skip
_OF_CLICK = (
    "log_radius", "thin", "half_mm", "same_clicks", "opposite_clicks", "size", "expected_size", "walker_click",
    "local_click", "others_click", "filled_3_click",
)  # fmt: skip
_SHAPE = ("mean", "level", "log_count", "log_ml", "share", "growth", "farthest", "walker_share", "walker_part")

PIECE_FEATURES = (*_SHAPE, *(f"mean_{name}" for name in _MEANS), *(f"click_{name}" for name in _OF_CLICK))
"""Names of the features of a piece, in the order of the columns of ``Pieces.features``."""


@dataclass(frozen=True)
class Pieces:
    """The pieces around a click, from the surest to the largest.

    ``level`` (n,): the lowest probability on the way from the click to each candidate. ``thresholds`` (k,): a piece is
    the candidates with at least this level. ``voxels`` (k,): their number. ``features`` (k, len(PIECE_FEATURES)).
    """

    level: FloatArray
    thresholds: FloatArray
    voxels: NDArray[np.int64]
    features: FloatArray

    def get_voxels(self, piece: int) -> Mask:
        """Return which candidates (n,) belong to the piece of this number."""
        return np.asarray(self.level >= self.thresholds[piece])


def find_pieces(evidence: ClickFeatures, probability: FloatArray) -> Pieces:
    """Return the pieces around the click; ``probability`` (n,) is that each candidate is wrong. There must be some."""
    level = _compute_levels(evidence, probability)
    order = np.argsort(-level, kind="stable")
    features, sorted_level = evidence.features[order], level[order]
    counts = np.maximum(np.searchsorted(-sorted_level, -_THRESHOLDS, side="right"), 1)

    def total(values: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return the sum of ``values`` (n,) over each piece."""
        return np.cumsum(values, dtype=np.float64)[counts - 1]

    def column(name: str) -> FloatArray:
        return features[:, FEATURES.index(name)].astype(np.float32)

    walker = column("walker") > 0
    mean = np.clip(total(probability[order]) / counts, 1e-3, 1 - 1e-3)
    shape = {
        "mean": np.log(mean / (1 - mean)),
        "level": _LEVELS,
        "log_count": np.log(counts) / 3,
        "log_ml": np.log(counts * evidence.voxel_ml + 0.01),
        "share": np.log(counts / (evidence.mask_voxels + 1)),
        "growth": np.log(counts / np.concatenate([[1], counts[:-1]])),
        "farthest": np.maximum.accumulate(column("distance"))[counts - 1],
        "walker_share": total(walker) / counts,
        "walker_part": np.log((total(walker) + 1) / (np.count_nonzero(walker) + 1)),
    }
    columns = [
        *(shape[name] for name in _SHAPE),
        *(total(column(name)) / counts for name in _MEANS),
        *(np.full(len(counts), column(name)[0]) for name in _OF_CLICK),
    ]
    return Pieces(level, _THRESHOLDS.astype(np.float32), counts, np.stack(columns, axis=1).astype(np.float32))


def _compute_levels(evidence: ClickFeatures, probability: FloatArray) -> FloatArray:
    """Return for each candidate (n,) the lowest probability on the best way to it from the click.

    Ways lead over faces, edges and corners: errors along a border are often one voxel thick.
    """
    heights = np.zeros(evidence.candidates.shape, np.float32)
    heights[evidence.candidates] = probability
    heights[evidence.click] = 1.0
    marks = evidence.click.astype(np.float32)
    flooded = sitk.ReconstructionByDilation(sitk.GetImageFromArray(marks), sitk.GetImageFromArray(heights), True, True)
    return np.asarray(sitk.GetArrayFromImage(flooded)[evidence.candidates], np.float32)


def select_best_piece(
    voxels: NDArray[np.int64], wrong: FloatArray, mask: int, adds: bool, caution: float
) -> int | None:
    """Return the number of the piece with the largest expected gain of Dice, None if none of them is expected to gain.

    ``voxels`` (k,): the sizes of the pieces. ``wrong`` (k,): the share of each that is probably wrong. ``mask``: the
    voxels of the organ's mask, which is taken to be right elsewhere. ``caution``: how much less than ``wrong`` is
    counted on.
    """
    right = voxels * np.clip(wrong - caution, 0.0, 1.0)
    if adds:
        gain = 2 * (mask + right) / (2 * mask + voxels + right) - 2 * mask / np.maximum(2 * mask + right, 1)
    else:
        left, truth = mask - voxels, mask - right
        gain = 2 * left / np.maximum(left + truth, 1) - 2 * truth / np.maximum(mask + truth, 1)
    best = int(np.argmax(gain))
    return best if gain[best] > 0 else None
