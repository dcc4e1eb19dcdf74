"""Evidence of the network about each voxel, beyond its label, with one byte per voxel and quantity.

The review needs whole organs, so it cannot work plane by plane. The quantities it needs are kept as bytes on the model
grid; the probabilities of all channels are never held for more than a plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from ..inference.label_resampling import Bytes, FloatArray
from ..inference.maps import normalized_entropy
from ..inference.planes import Plane
from ..inference.postprocessing import remove_islands
from ..organs import Vocabulary


class Evidence:
    """Collects evidence from finished planes. All arrays are uint8 (depth, height, width) of the model grid.

    ``labels``: the result.
    ``other``: labels of the other prediction (the stitched experts, or the decoder if the result is the experts').
    ``alternative``: the most likely label instead of the result: that of ``other`` if it differs, else the second most
    probable one.
    ``error_probability``: 0 to 255 for 0 to 1, the probability that both predictions, on average, give to labels other
    than the voxel's. If the network is well calibrated, the sum is the number of wrong voxels.
    ``entropy``: 0 to 255 for 0 to 1, see ``inference.maps``.
    ``dominant``: the expert with the largest attention: 1 head, 2 medium, 3 tail.
    ``attention``: the attention of that expert, 0 to 255 for 0 to 1.

    ``size`` is (depth, height, width). ``expert_slots`` maps each attention channel to head (0), medium (1) or tail
    (2). Without an aggregation decoder (``has_other``) ``other`` is None; without attention (``has_attention``)
    ``dominant`` and ``attention`` are None. ``kept`` are the labels to write, None for all; the
    others count as background.
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
        self.dominant: Bytes | None = np.zeros(shape, np.uint8) if has_attention else None
        self.attention: Bytes | None = np.zeros(shape, np.uint8) if has_attention else None

    @property
    def kept(self) -> tuple[int, ...]:
        """The labels of organs that ``labels`` can contain."""
        return tuple(int(label) for label in np.unique(self._written) if label)

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        arrays = (self.labels, self.alternative, self.error_probability, self.entropy)
        optional = (self.other, self.dominant, self.attention)
        return sum(array.nbytes for array in (*arrays, *optional) if array is not None)

    def select_voxels(self, where: NDArray[np.intp]) -> Evidence:
        """Return the evidence on the voxels at the flat indices ``where`` only; its arrays are (voxels,)."""
        part = copy(self)
        for name, array in vars(self).items():
            if isinstance(array, np.ndarray) and array.shape == self.labels.shape:
                setattr(part, name, array.ravel()[where])
        return part

    def add(self, plane: Plane) -> None:
        """Add a plane."""
        z, probabilities = plane.z, plane.probabilities
        labels = self._written[plane.labels]
        mine = self._merge_dropped_labels(probabilities)
        self.labels[z] = labels
        self.entropy[z] = _to_uint8(plane.entropy if mine is probabilities else normalized_entropy(mine))
        wrong = 1 - _get_label_probability(mine, labels)
        if self.other is not None and plane.other is not None:
            other_folded = self._merge_dropped_labels(plane.other)
            self.other[z] = self._written[plane.other.argmax(axis=0)]
            wrong = (wrong + 1 - _get_label_probability(other_folded, labels)) / np.float32(2)
            mine = mine + other_folded
        self.error_probability[z] = _to_uint8(wrong)
        mine = mine.copy() if mine is probabilities else mine
        np.put_along_axis(mine, labels[None].astype(np.intp), -1, axis=0)
        second = mine.argmax(axis=0).astype(np.uint8)
        if self.other is not None:
            second = np.where(self.other[z] != labels, self.other[z], second)
        self.alternative[z] = second
        if self.dominant is not None and self.attention is not None and plane.attention:
            self.dominant[z] = self._slots[plane.dominant] + np.uint8(1)
            self.attention[z] = _to_uint8(plane.attention[max(plane.attention)].max(axis=0))

    def remove_islands(self) -> None:
        """Set islands in ``labels`` and ``other`` to background, as in the result on the CT's grid.

        The label of an island voxel becomes its alternative.
        """
        before = self.labels.copy()
        remove_islands(self.labels, self.vocabulary.compact)
        np.copyto(self.alternative, before, where=before != self.labels)
        if self.other is not None:
            remove_islands(self.other, self.vocabulary.compact)

    def _merge_dropped_labels(self, probabilities: FloatArray) -> FloatArray:
        """Add the probabilities of organs that are not kept to the background."""
        if not self._dropped:
            return probabilities
        folded = probabilities.copy()
        folded[0] += folded[self._dropped].sum(axis=0)
        folded[self._dropped] = 0
        return folded


def _get_label_probability(probabilities: FloatArray, labels: Bytes) -> FloatArray:
    """Return the probability (height, width) of each voxel's label."""
    return np.take_along_axis(probabilities, labels[None].astype(np.intp), axis=0)[0]


def _to_uint8(values: FloatArray) -> Bytes:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
