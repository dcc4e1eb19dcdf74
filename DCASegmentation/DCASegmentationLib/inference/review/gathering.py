"""What a run gathers for the review while its planes go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...imaging.grid import Grid, canonical_view
from ...method.network import DCANet
from ...organs import Vocabulary
from ..back_to_ct import LabelsOnCTGrid
from ..islands import remove_islands
from ..maps import FloatArray
from ..measurements import OrganMeasurement
from ..options import SegmentOptions
from .evidence import Bytes, Evidence
from .making import ReviewResult, make_review


def options_with_evidence(options: SegmentOptions, network: DCANet) -> SegmentOptions:
    """``options`` that have ``network`` give all it can tell the review: both predictions, and attention if it has
    any. The review does with less; that is no reason to refuse."""
    if not options.review or network.aggregation is None:
        return options
    attends = network.options["fusion"] in ("dfam", "average")
    return replace(options, disagreement=True, deciding_expert=options.deciding_expert or attends)


class ReviewGathering:
    """Takes finished planes in order, then makes the review.

    ``owners`` are the labels of the head, medium and tail expert. Beside the evidence on the model grid it holds the
    other prediction's labels on the CT's grid, a byte a voxel.
    """

    def __init__(
        self,
        options: SegmentOptions,
        vocabulary: Vocabulary,
        owners: Sequence[Sequence[int]],
        ct: Grid,
        grid: Grid,
        orientation: str,
    ) -> None:
        kept = options.kept_labels(vocabulary)
        slots = [slot for slot, owned in enumerate(owners) if owned]
        self._owners = owners
        self._keep_islands = options.keep_islands
        self._ct, self._grid = ct, grid
        self._other_is_experts = options.output == "aggregated"
        self._evidence = Evidence(
            grid.shape, vocabulary, slots, options.disagreement, bool(options.levels_needed), kept
        )
        self._other: Bytes | None = None
        if options.disagreement:
            self._other = np.zeros(ct.shape, np.uint8)
            self._on_ct = LabelsOnCTGrid(canonical_view(self._other, ct, orientation), ct, grid, kept)

    def add(self, z: int, probabilities: FloatArray, other: FloatArray | None, attention: FloatArray | None) -> None:
        """Take plane ``z``; arguments as in ``Evidence.add``."""
        self._evidence.add(z, probabilities, other, attention)
        if other is not None and self._other is not None:
            self._on_ct.add(z, other)

    def add_background(self, z: int, background: FloatArray) -> None:
        """Take plane ``z`` of which nothing was computed; ``background`` are its probabilities."""
        if self._other is not None:
            self._on_ct.add(z, background)

    def finish(self, labels: Bytes, measurements: tuple[OrganMeasurement, ...]) -> ReviewResult:
        """The review of ``labels`` (z, y, x) on the CT's grid."""
        if not self._keep_islands:
            self._evidence.take_out_islands()
            if self._other is not None:
                remove_islands(self._other)
        return make_review(
            self._evidence,
            labels,
            self._other,
            self._ct,
            self._grid,
            measurements,
            self._owners,
            self._other_is_experts,
        )
