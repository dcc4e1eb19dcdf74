"""The options of a segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import UserError
from ..organs import Vocabulary

Weighting = Literal["gaussian", "constant"]
Output = Literal["aggregated", "experts"]
Average = Literal["logits", "probabilities"]

ATTENTION_LEVELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class SegmentOptions:
    """The options of one segmentation.

    ``overlap``: share of a window's side that neighbors have in common; None takes the model's own.
    ``weighting``: weights of a window's voxels in the average, see ``sliding_window.importance_map``.
    ``batch``: windows per batch; None leaves it to the backend.
    ``output``: the aggregation decoder's result, or that of the stitched experts (skips the aggregation decoder).
    ``average``: whether to average logits or probabilities of overlapping windows (paper: probabilities).
    ``attention_levels``: levels whose attention maps to keep, 1 (DeB-6, 1/8 resolution) to 4 (DeB-9, full resolution).
    ``dominant_expert``, ``entropy``, ``disagreement``: whether to make these maps.
    ``review``: whether to look for findings (see ``review.schema``).
    ``body_box``: place windows over the bounding box of the body only, and skip windows that contain no body.
    ``find_abdomen``: look for organs with a coarse pass first, and segment only the planes around them.
    ``keep_islands``: keep pieces of an organ that are far smaller than its largest piece (see ``postprocessing``).
    ``organs``: keys or names of the organs to keep in the labels; None keeps all.

    Raises UserError for values out of range.
    """

    overlap: float | None = None
    weighting: Weighting = "gaussian"
    output: Output = "aggregated"
    average: Average = "logits"
    attention_levels: tuple[int, ...] = ()
    dominant_expert: bool = False
    entropy: bool = False
    disagreement: bool = False
    review: bool = False
    body_box: bool = True
    find_abdomen: bool = False
    keep_islands: bool = False
    batch: int | None = None
    organs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UserError(f"An overlap of {self.overlap:g} is not possible.", "Give a value from 0 to below 1.")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"A batch of {self.batch} windows is not possible.", "Give a batch of 1 or more.")
        for name, value, choices in (
            ("weighting", self.weighting, get_args(Weighting)),
            ("output", self.output, get_args(Output)),
            ("average", self.average, get_args(Average)),
        ):
            if value not in choices:
                raise UserError(f"The {name} '{value}' does not exist.", f"Choose one of: {', '.join(choices)}.")
        unknown = [level for level in self.attention_levels if level not in ATTENTION_LEVELS]
        if unknown:
            raise UserError(f"Attention level {unknown[0]} does not exist.", "Choose from the levels 1, 2, 3 and 4.")
        if self.organs is not None and not self.organs:
            raise UserError("No organ is selected.", "Select at least one organ, or omit the option to get all organs.")

    @property
    def levels_needed(self) -> tuple[int, ...]:
        """Attention levels that the network must return, ascending; the dominant expert needs the finest."""
        levels = tuple(sorted(set(self.attention_levels)))
        return levels or ((max(ATTENTION_LEVELS),) if self.dominant_expert else ())

    @property
    def wants_maps(self) -> bool:
        """Whether the options request any map in addition to the labels."""
        return bool(self.levels_needed) or self.entropy or self.disagreement

    def kept_labels(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Return the labels of the selected organs. Raises UserError for an organ that ``vocabulary`` lacks."""
        if self.organs is None:
            return frozenset(vocabulary.by_label)
        return frozenset(vocabulary.find(name).label for name in self.organs)
