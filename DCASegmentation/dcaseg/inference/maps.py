"""Maps on the model grid: the experts' attention, who decided, how sure the network is, where its parts disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..organs import Vocabulary
from .label_resampling import NearestResampler

EXPERTS = ("head", "medium", "tail")

FloatArray = NDArray[np.float32]


def normalised_entropy(probabilities: FloatArray) -> FloatArray:
    """Entropy over the first axis (channel), divided by ln C: 0 is certain, 1 is an even guess."""
    terms = probabilities * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.clip(-terms.sum(axis=0) / np.float32(np.log(len(probabilities))), 0, 1)


def total_variation(first: FloatArray, second: FloatArray) -> FloatArray:
    """Total variation distance over the first axis (channel), 0 (equal) to 1 (no probability in common)."""
    return np.clip(np.abs(first - second).sum(axis=0) / 2, 0, 1)


class MapsOnModelGrid:
    """Takes finished planes in order and fills in the maps that are asked for.

    ``size`` is (depth, height, width) of the model grid. ``expert_slots`` says for each attention channel which of
    head (0), medium (1) and tail (2) it is. All maps are float32 arrays of ``size`` but ``dominant_expert``, uint8:
    1 head, 2 medium, 3 tail, whoever has the largest attention at the finest level given, of background voxels too;
    0 in planes that were not taken. ``dominant_expert_on`` gives it for labels. A map that is not asked for is None, or
    missing in ``attention``.
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
        self.attention: dict[int, dict[str, FloatArray]] = {
            level: {EXPERTS[slot]: np.zeros(shape, np.float32) for slot in self._slots} for level in attention_levels
        }
        self.dominant_expert = np.zeros(shape, np.uint8) if dominant_expert else None
        self.entropy = np.zeros(shape, np.float32) if entropy else None
        self.disagreement = np.zeros(shape, np.float32) if disagreement else None
        self._voxels = np.zeros(len(vocabulary) + 1, np.int64)
        self._sums: dict[int, NDArray[np.float64]] = {}

    def add(
        self, z: int, probabilities: FloatArray, attention: Mapping[int, FloatArray], other: FloatArray | None = None
    ) -> None:
        """Take plane ``z`` of the prediction and of each level's attention.

        ``probabilities`` are (channel, height, width), each level's attention (expert, height, width); ``other`` are
        the probabilities that the disagreement compares with, like ``probabilities``.
        """
        labels = self._written[probabilities.argmax(axis=0)]
        if self.entropy is not None:
            self.entropy[z] = normalised_entropy(probabilities)
        if self.disagreement is not None and other is not None:
            self.disagreement[z] = total_variation(probabilities, other)
        if self.dominant_expert is not None:
            finest = attention[max(attention)]
            dominant = np.asarray(self._slots, np.uint8)[finest.argmax(axis=0)] + np.uint8(1)
            self.dominant_expert[z] = dominant
        flat = labels.ravel()
        self._voxels += np.bincount(flat, minlength=len(self._voxels))
        for level, experts in attention.items():
            sums = self._sums.setdefault(level, np.zeros((len(self._slots), len(self._voxels))))
            for channel, weights in enumerate(experts):
                sums[channel] += np.bincount(flat, weights=weights.ravel(), minlength=len(self._voxels))
                if level in self.attention:
                    self.attention[level][EXPERTS[self._slots[channel]]][z] = weights

    def dominant_expert_on(self, labels: NDArray[np.uint8], model: Grid, ct: Grid) -> NDArray[np.uint8] | None:
        """The expert that decided each voxel of ``labels`` (z, y, x) on ``ct``, 0 where they are background; that of
        the nearest voxel of the ``model`` grid. None where it was not asked for."""
        if self.dominant_expert is None:
            return None
        dominant, taken = self.dominant_expert, np.flatnonzero(self.dominant_expert.any(axis=(1, 2)))
        if not len(taken):
            return np.zeros_like(labels)
        # A voxel of an organ next to the first or last plane taken was decided there.
        dominant[: taken[0]], dominant[taken[-1] + 1 :] = dominant[taken[0]], dominant[taken[-1]]
        on_ct = NearestResampler(model, ct).on_ct(dominant, ct)
        on_ct[labels == 0] = 0
        return on_ct

    def attention_by_organ(self) -> dict[int, dict[str, dict[str, float]]]:
        """Mean attention over an organ's voxels on the model grid: level to organ key to expert.

        Holds every level that came with the planes, and the organs that were found.
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
