"""Head, medium and tail organs of a set of labelled cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..method.log_gap import Partition, partition
from ..method.partition import PartitionMode
from ..organs import Vocabulary


class Labelled(Protocol):
    """A labeled case, or an anatomy that synthetic CTs are made from: ``unknown`` are labels that it leaves out."""

    @property
    def name(self) -> str: ...

    @property
    def unknown(self) -> tuple[int, ...]: ...

    def voxel_counts(self, n_labels: int) -> np.ndarray:
        """Voxels of each label 0 to ``n_labels`` on the model grid, int64."""
        ...


def divide(labelled: Sequence[Labelled], vocabulary: Vocabulary, mode: PartitionMode) -> Partition:
    """The groups by mean voxels of each organ over the cases that tell of it, times the number of cases."""
    counts = sum((case.voxel_counts(len(vocabulary)) for case in labelled), np.zeros(len(vocabulary) + 1, np.int64))
    sizes: dict[int, int] = {}
    for organ in vocabulary:
        telling = sum(organ.label not in case.unknown for case in labelled)
        sizes[organ.label] = round(int(counts[organ.label]) * len(labelled) / telling) if telling else 0
    names = {organ.label: organ.name for organ in vocabulary}
    return partition(sizes, mode, no_second_gap="guarded", names=names)
