"""What the network tells of each voxel besides its label, kept small: a byte a voxel and question.

The review needs whole organs, so it cannot work plane by plane. What it needs of a plane is kept as bytes on the model
grid; probabilities of all channels are never held for more than a plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..inference.label_resampling import Bytes, FloatArray
from ..inference.maps import normalised_entropy, total_variation
from ..inference.postprocessing import remove_islands
from ..organs import Vocabulary


class Evidence:
    """Takes finished planes in order; all arrays are uint8 (depth, height, width) of the model grid.

    ``labels``: the result. ``alternative``: the label it would most likely have instead, by the other prediction
    (stitched experts, or the decoder where the experts are the result) where that says something else, else the runner
    up. ``other``: the other prediction's label. ``error_probability``, ``entropy`` and ``disagreement`` are 0 to 255
    for 0 to 1: ``error_probability`` is the mean over both predictions of the probability that they give to other
    labels than the voxel's; its sum is the number of wrong voxels, if the network is as sure as it should be.
    ``dominant`` is 1 head, 2 medium, 3 tail, whoever has most attention, and ``attention`` that expert's attention, 0
    to 255 for 0 to 1.

    ``kept`` are the labels to write, None for all; the others count as background. Without an aggregation decoder
    there is no ``other`` and no ``disagreement``, without attention no ``dominant``: ``has_other`` and
    ``has_attention`` say so, and the arrays are None.
    """

    def __init__(
        self,
        size: Sequence[int],
        vocabulary: Vocabulary,
        expert_slots: Sequence[int],
        has_other: bool,
        has_attention: bool,
        kept: frozenset[int] | None = None,
    ) -> None:
        shape = tuple(size)
        self.vocabulary = vocabulary
        self._slots = np.asarray(expert_slots, np.uint8)
        self._written = np.arange(len(vocabulary) + 1, dtype=np.uint8)
        dropped = [] if kept is None else [label for label in vocabulary.by_label if label not in kept]
        self._written[dropped] = 0
        self._dropped = dropped
        self.labels: Bytes = np.zeros(shape, np.uint8)
        self.alternative: Bytes = np.zeros(shape, np.uint8)
        self.error_probability: Bytes = np.zeros(shape, np.uint8)
        self.entropy: Bytes = np.zeros(shape, np.uint8)
        self.other: Bytes | None = np.zeros(shape, np.uint8) if has_other else None
        self.disagreement: Bytes | None = np.zeros(shape, np.uint8) if has_other else None
        self.dominant: Bytes | None = np.zeros(shape, np.uint8) if has_attention else None
        self.attention: Bytes | None = np.zeros(shape, np.uint8) if has_attention else None

    @property
    def kept(self) -> tuple[int, ...]:
        """The organs' labels that can be in ``labels``."""
        return tuple(int(label) for label in np.unique(self._written) if label)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.labels, self.alternative, self.error_probability, self.entropy)
        optional = (self.other, self.disagreement, self.dominant, self.attention)
        return sum(array.nbytes for array in (*arrays, *optional) if array is not None)

    def add(
        self,
        z: int,
        probabilities: FloatArray,
        other: FloatArray | None = None,
        attention: FloatArray | None = None,
    ) -> None:
        """Take plane ``z``: probabilities (channel, height, width) of the result and of the other prediction, and
        the finest attention (expert, height, width)."""
        labels = self._written[probabilities.argmax(axis=0)]
        mine = self._folded(probabilities)
        self.labels[z] = labels
        self.entropy[z] = _byte(normalised_entropy(mine))
        wrong = 1 - _at(mine, labels)
        if self.other is not None and self.disagreement is not None and other is not None:
            others = self._folded(other)
            self.other[z] = self._written[other.argmax(axis=0)]
            self.disagreement[z] = _byte(total_variation(mine, others))
            wrong = (wrong + 1 - _at(others, labels)) / np.float32(2)
            mine = mine + others
        self.error_probability[z] = _byte(wrong)
        mine = mine.copy() if mine is probabilities else mine
        np.put_along_axis(mine, labels[None].astype(np.intp), -1, axis=0)
        second = mine.argmax(axis=0).astype(np.uint8)
        if self.other is not None:
            second = np.where(self.other[z] != labels, self.other[z], second)
        self.alternative[z] = second
        if self.dominant is not None and self.attention is not None and attention is not None:
            self.dominant[z] = self._slots[attention.argmax(axis=0)] + np.uint8(1)
            self.attention[z] = _byte(attention.max(axis=0))

    def take_out_islands(self) -> None:
        """Make background of the islands in ``labels`` and ``other``, as in the result on the CT's grid; what
        ``labels`` lose becomes the alternative."""
        before = self.labels.copy()
        remove_islands(self.labels)
        np.copyto(self.alternative, before, where=before != self.labels)
        if self.other is not None:
            remove_islands(self.other)

    def _folded(self, probabilities: FloatArray) -> FloatArray:
        """``probabilities`` with those of organs that are not kept added to the background."""
        if not self._dropped:
            return probabilities
        folded = probabilities.copy()
        folded[0] += folded[self._dropped].sum(axis=0)
        folded[self._dropped] = 0
        return folded


def _at(probabilities: FloatArray, labels: Bytes) -> FloatArray:
    """The probability (height, width) of each voxel's label."""
    return np.take_along_axis(probabilities, labels[None].astype(np.intp), axis=0)[0]


def _byte(values: FloatArray) -> Bytes:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
