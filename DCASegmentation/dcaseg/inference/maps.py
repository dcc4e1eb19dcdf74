"""Maps on the model grid: the experts' attention, the dominant expert, entropy, and disagreement of the decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..organs import Vocabulary
from .label_resampling import FloatArray, NearestResampler

if TYPE_CHECKING:
    from .planes import Plane

EXPERTS = ("head", "medium", "tail")

UInt16Array = NDArray[np.uint16]
_MAX_VALUE = 65535


def normalized_entropy(probabilities: FloatArray) -> FloatArray:
    """Entropy over the first axis (C channels), divided by ln C: 0 is certain, 1 is a uniform distribution.

    ``probabilities`` are (channel, height, width); the result is (height, width).
    """
    terms = probabilities * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.clip(-terms.sum(axis=0) / np.float32(np.log(len(probabilities))), 0, 1)


def total_variation(first: FloatArray, second: FloatArray) -> FloatArray:
    """Total variation distance over the first axis (channel), from 0 (equal) to 1 (disjoint).

    Both arguments are probabilities (channel, height, width); the result is (height, width).
    """
    return np.clip(np.abs(first - second).sum(axis=0) / 2, 0, 1)


def _to_uint16(values: FloatArray) -> UInt16Array:
    # Small values stay above 0, which stands for voxels without a value and is shown as a hole.
    return np.maximum(np.rint(values * np.float32(_MAX_VALUE)), values > 0).astype(np.uint16)


def to_float(stored: UInt16Array) -> FloatArray:
    """Return the values, 0 to 1, of a map that is stored as 16-bit numbers."""
    return stored.astype(np.float32) / np.float32(_MAX_VALUE)


class MapsOnModelGrid:
    """Takes finished planes in order and fills in the requested maps.

    ``size`` is (depth, height, width) of the model grid. ``expert_slots`` maps each attention channel to its expert:
    head (0), medium (1) or tail (2). ``kept`` are the labels of the requested organs, None for all; the others count as
    background in the mean attention of the organs.

    All maps are arrays of ``size``: uint16 for values from 0 to 1 (see ``to_float``), which takes half the memory of
    float32 and rounds by at most 1.6e-5. ``dominant_expert`` (uint8) holds 1 head, 2 medium, 3 tail, the expert with
    the largest attention at the finest level, in background voxels too; 0 in planes that were not added.
    ``resample_dominant_expert`` gives the same map on the CT's grid. A map that was not requested is None, or missing
    from ``attention`` (level to expert to map).
    """

    def __init__(
        self,
        size: Sequence[int],
        vocabulary: Vocabulary,
        expert_slots: Sequence[int],
        attention_levels: Sequence[int] = (),
        dominant_expert: bool = False,
        entropy: bool = False,
        disagreement: bool = False,
        kept: frozenset[int] | None = None,
    ) -> None:
        shape = tuple(size)
        self._vocabulary = vocabulary
        self._slots = tuple(expert_slots)
        self._written = np.arange(len(vocabulary) + 1)
        if kept is not None:
            self._written[[label for label in vocabulary.by_label if label not in kept]] = 0
        self.attention: dict[int, dict[str, UInt16Array]] = {
            level: {EXPERTS[slot]: np.zeros(shape, np.uint16) for slot in self._slots} for level in attention_levels
        }
        self.dominant_expert = np.zeros(shape, np.uint8) if dominant_expert else None
        self.entropy = np.zeros(shape, np.uint16) if entropy else None
        self.disagreement = np.zeros(shape, np.uint16) if disagreement else None
        self._voxels = np.zeros(len(vocabulary) + 1, np.int64)
        self._sums: dict[int, NDArray[np.float64]] = {}

    def add(self, plane: Plane, levels: Sequence[int]) -> None:
        """Add a plane, with its attention at ``levels``."""
        z = plane.z
        if self.entropy is not None:
            self.entropy[z] = _to_uint16(plane.entropy)
        if self.disagreement is not None and plane.other is not None:
            self.disagreement[z] = _to_uint16(total_variation(plane.probabilities, plane.other))
        if self.dominant_expert is not None:
            self.dominant_expert[z] = np.asarray(self._slots, np.uint8)[plane.dominant] + np.uint8(1)
        labels = self._written[plane.labels].ravel()
        # Organs cover a small part of a plane.
        organs = np.flatnonzero(labels)
        labels = labels[organs]
        self._voxels += np.bincount(labels, minlength=len(self._voxels))
        for level in levels:
            sums = self._sums.setdefault(level, np.zeros((len(self._slots), len(self._voxels))))
            for channel, weights in enumerate(plane.attention[level]):
                sums[channel] += np.bincount(labels, weights.ravel()[organs], minlength=len(self._voxels))
                if level in self.attention:
                    self.attention[level][EXPERTS[self._slots[channel]]][z] = _to_uint16(weights)

    def resample_dominant_expert(self, labels: NDArray[np.uint8], model: Grid, ct: Grid) -> NDArray[np.uint8] | None:
        """Return the dominant expert of each voxel of ``labels`` (z, y, x) on the grid ``ct``, 0 in the background.

        The value is that of the nearest voxel of the ``model`` grid. None if the map was not requested.
        """
        if self.dominant_expert is None:
            return None
        dominant, added = self.dominant_expert, np.flatnonzero(self.dominant_expert.any(axis=(1, 2)))
        if not len(added):
            return np.zeros_like(labels)
        # Organ voxels just beyond the first or last computed plane got their label from that plane.
        dominant[: added[0]], dominant[added[-1] + 1 :] = dominant[added[0]], dominant[added[-1]]
        on_ct = NearestResampler(model, ct).on_ct(dominant, ct)
        on_ct[labels == 0] = 0
        return on_ct

    def compute_attention_by_organ(self) -> dict[int, dict[str, dict[str, float]]]:
        """Return the mean attention over each organ's voxels on the model grid: level to organ key to expert.

        Contains each level that came with the planes, and the organs that have voxels.
        """
        return {
            level: {
                organ.key: {
                    EXPERTS[slot]: float(sums[channel, organ.label] / self._voxels[organ.label])
                    for channel, slot in enumerate(self._slots)
                }
                for organ in self._vocabulary
                if self._voxels[organ.label]
            }
            for level, sums in self._sums.items()
        }
