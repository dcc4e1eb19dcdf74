"""What a segmentation run is asked for."""

from __future__ import annotations

import difflib
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
    """Options of one run. None of them belongs to the model, but for the overlap that it was measured with.

    ``body_box``: windows lie over the body's box only, and those that hold no body are left out.

    ``find_abdomen``: a coarse pass looks for organs first, and only the planes around them are segmented.

    ``overlap``, ``weighting``, ``batch``: the sliding window (share of a side, None for the model's own; weights;
    windows at once, None leaves that to the runtime).
    ``output``: the aggregation decoder's result, or the stitched experts' (which skips the aggregation decoder).
    ``average``: whether logits or probabilities of overlapping windows are averaged (paper: probabilities).
    ``attention_levels``: levels whose attention maps are kept, 1 (DeB-6, 1/8 resolution) to 4 (DeB-9, full).
    ``dominant_expert``, ``entropy``, ``disagreement``: further maps to make.
    ``review``: whether findings are looked for (see ``review_file``).
    ``keep_islands``: whether pieces of an organ far smaller than its largest stay in the labels (``islands``).
    ``organs``: keys of the organs to keep in the labels; None keeps all.

    Raises UserError for values that do not fit.
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
            raise UserError(f"An overlap of {self.overlap:g} is not possible.", "Give a share from 0 to below 1.")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"{self.batch} windows at once are not possible.", "Give a batch of 1 or more.")
        for name, value, choices in (
            ("weighting", self.weighting, get_args(Weighting)),
            ("output", self.output, get_args(Output)),
            ("average", self.average, get_args(Average)),
        ):
            if value not in choices:
                raise UserError(f"There is no {name} '{value}'.", f"Choose one of: {', '.join(choices)}.")
        unknown = [level for level in self.attention_levels if level not in ATTENTION_LEVELS]
        if unknown:
            raise UserError(f"There is no attention level {unknown[0]}.", "Choose from the levels 1, 2, 3 and 4.")
        if self.organs is not None and not self.organs:
            raise UserError("No organ was chosen.", "Name at least one organ, or leave the choice out to get all.")

    @property
    def levels_needed(self) -> tuple[int, ...]:
        """Attention levels the network must give, ascending: the finest is needed for the deciding expert."""
        levels = tuple(sorted(set(self.attention_levels)))
        return levels or ((max(ATTENTION_LEVELS),) if self.dominant_expert else ())

    @property
    def wants_maps(self) -> bool:
        """Whether anything besides the labels is asked for."""
        return bool(self.levels_needed) or self.entropy or self.disagreement

    def kept_labels(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Labels of the chosen organs. Raises UserError for an organ ``vocabulary`` does not have."""
        if self.organs is None:
            return frozenset(vocabulary.by_label)
        for key in self.organs:
            if key not in vocabulary.by_key:
                close = difflib.get_close_matches(key, vocabulary.by_key, n=1)
                hint = f"Did you mean '{close[0]}'? " if close else ""
                raise UserError(f"This model has no organ '{key}'.", f"{hint}It knows: {', '.join(vocabulary.by_key)}.")
        return frozenset(vocabulary.by_key[key].label for key in self.organs)
