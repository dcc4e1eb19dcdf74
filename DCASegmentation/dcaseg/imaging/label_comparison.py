"""Comparison of two label maps of one CT: changed organs, and Dice by label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from ..organs import Organ, Vocabulary
from .grid import Grid


@dataclass(frozen=True)
class OrganChange:
    """One organ in two label maps: its volumes, what was added and removed (all in ml), and its Dice.

    ``dice`` is None if neither map contains the organ.
    """

    organ: Organ
    before_ml: float
    after_ml: float
    added_ml: float
    removed_ml: float
    dice: float | None

    @property
    def changed(self) -> bool:
        """Whether any voxel of the organ differs."""
        return self.added_ml > 0 or self.removed_ml > 0


def compare_label_maps(before: sitk.Image, after: sitk.Image, vocabulary: Vocabulary) -> tuple[OrganChange, ...]:
    """Compare every organ of ``vocabulary`` in two label maps.

    Raises ImageError if they lie on different grids or contain a label that the vocabulary lacks.
    """
    grid = Grid.from_image(before)
    if not grid.is_same_as(Grid.from_image(after)):
        raise ImageError(
            "The two label maps do not lie on the same grid, so they cannot be compared.",
            "Export both on the grid of the CT.",
        )
    old, new = sitk.GetArrayViewFromImage(before), sitk.GetArrayViewFromImage(after)
    channels = len(vocabulary) + 1
    joint = np.zeros((channels, channels), np.int64)
    for old_slice, new_slice in zip(old, new, strict=True):
        highest = max(int(old_slice.max()), int(new_slice.max()))
        if highest >= channels:
            raise ImageError(
                f"Label {highest} is not in {vocabulary.name}, whose labels end at {channels - 1}.",
                "Use label maps with the model's label numbers (see dca bundle info).",
            )
        pairs = old_slice.ravel().astype(np.int64) * channels + new_slice.ravel()
        joint += np.bincount(pairs, minlength=channels**2).reshape(channels, channels)
    ml = joint * grid.volume_ml_per_voxel
    return tuple(_compute_change(organ, ml) for organ in vocabulary)


def _compute_change(organ: Organ, ml: np.ndarray) -> OrganChange:
    """The change of one organ; ``ml`` holds the volume of each pair (label before, label after)."""
    before, after, both = ml[organ.label].sum(), ml[:, organ.label].sum(), ml[organ.label, organ.label]
    dice = float(2 * both / (before + after)) if before + after > 0 else None
    # Counted directly: a difference of sums would leave rounding errors where nothing changed.
    added = ml[:, organ.label].sum() - both if after > both else 0.0
    removed = before - both if before > both else 0.0
    return OrganChange(organ, float(before), float(after), float(added), float(removed), dice)


def count_labels(labels: np.ndarray, channels: int) -> np.ndarray:
    """The number of voxels of each label from 0 to ``channels`` - 1, int64; the highest label is below ``channels``."""
    counts = np.zeros(channels, np.int64)
    # Slice by slice: bincount converts its input to 64-bit numbers.
    for each in labels:
        counts += np.bincount(each.ravel(), minlength=channels)
    return counts


def compute_dice_by_label(predicted: np.ndarray, truth: np.ndarray, n_labels: int) -> np.ndarray:
    """The Dice of labels 1 to ``n_labels``, float64 (n_labels,); NaN if neither map contains the label.

    Both are integer arrays of the same shape with labels 0 to ``n_labels``. Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"label maps of shapes {predicted.shape} and {truth.shape} cannot be compared")
    channels = n_labels + 1
    sizes = count_labels(predicted, channels) + count_labels(truth, channels)
    both = np.zeros(channels, np.int64)
    for one, other in zip(predicted, truth, strict=True):
        both += np.bincount(other[one == other], minlength=channels)[:channels]
    with np.errstate(invalid="ignore"):
        return (2 * both / sizes)[1:]
