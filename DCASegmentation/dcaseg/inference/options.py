"""The options of a segmentation.

Each option is defined once, by its field. The command line, the worker's request and the Python API are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import UserError
from ..json_io import DataError, check
from ..option_fields import option
from ..organs import Vocabulary

Weighting = Literal["gaussian", "constant"]
Output = Literal["aggregated", "experts"]
Average = Literal["logits", "probabilities"]

ATTENTION_LEVELS = (1, 2, 3, 4)

_MAPS_OF_EXPERTS: Mapping[str, tuple[str, Any]] = {
    "attention_levels": ("attention", ()),
    "dominant_expert": ("dominant expert", False),
    "disagreement": ("disagreement", False),
}
"""Options for maps that not every model has: their names in messages, and their values without the map."""


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

    overlap: float | None = option(
        None, "Overlap of neighboring windows, from 0 to below 1. Default: the model's own.", minimum=0, below=1
    )
    weighting: Weighting = option("gaussian", "Weights of overlapping windows.")
    output: Output = option("aggregated", "Source of the labels: the aggregation decoder, or the stitched experts.")
    average: Average = "logits"
    attention_levels: tuple[int, ...] = option(
        (),
        "Levels of the attention maps, from 1 (coarse) to 4 (fine), such as 1,4; or none.",
        minimum=min(ATTENTION_LEVELS),
        maximum=max(ATTENTION_LEVELS),
    )
    dominant_expert: bool = option(
        False, "Write the map of the dominant expert.", off="Do not write the map of the dominant expert."
    )
    entropy: bool = option(False, "Write the uncertainty map.", off="Do not write the uncertainty map.")
    disagreement: bool = option(
        False,
        "Write the map of disagreement between the experts and the final decoder.",
        off="Do not write the map of disagreement between the experts and the final decoder.",
    )
    review: bool = option(
        False,
        "List findings, the regions that are most likely wrong: review.json and two images.",
        off="Do not look for findings.",
    )
    body_box: bool = option(
        True, "Run the network on the body only.", off="Also run the network on the air around the body."
    )
    find_abdomen: bool = option(
        False, "In a long scan, find the organs first with the default model and segment only around them."
    )
    keep_islands: bool = option(False, "Keep pieces of an organ that are much smaller than its largest piece.")
    batch: int | None = option(None, "Windows per batch. Default: the backend's choice.", minimum=1)
    organs: tuple[str, ...] | None = option(
        None, 'Organs to segment, such as liver,spleen or "Right kidney". Default: all.'
    )

    def __post_init__(self) -> None:
        try:
            check(self)
        except DataError as error:
            raise UserError(f"The option {error}.", "Specify another value, or omit the option.") from None
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

    def get_kept_labels(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Return the labels of the selected organs. Raises UserError for an organ that ``vocabulary`` lacks."""
        if self.organs is None:
            return frozenset(vocabulary.by_label)
        return frozenset(vocabulary.find(name).label for name in self.organs)


def require_available(options: SegmentOptions, network: Mapping[str, Any]) -> None:
    """Raise UserError if ``options`` request maps that a model with the network options ``network`` does not have."""
    missing = _find_unavailable_maps(options, network)
    if missing:
        raise UserError(
            f"{_format_missing_maps(missing, network)}.", "Do not request these maps, or use another model."
        )


def drop_unavailable_maps(options: SegmentOptions, network: Mapping[str, Any]) -> tuple[SegmentOptions, str]:
    """Return ``options`` without the maps that a model does not have, and a note on them for the user.

    ``network`` are the network options of the model. The note is empty if it has all maps that ``options`` request.
    """
    missing = _find_unavailable_maps(options, network)
    if not missing:
        return options, ""
    available = replace(options, **{name: _MAPS_OF_EXPERTS[name][1] for name in missing})
    return available, f"{_format_missing_maps(missing, network)}: these maps are left out."


def _find_unavailable_maps(options: SegmentOptions, network: Mapping[str, Any]) -> list[str]:
    aggregates = network.get("aggregation", True)
    attends = aggregates and network.get("fusion", "dfam") in ("dfam", "average")
    has = {"attention_levels": attends, "dominant_expert": attends, "disagreement": aggregates}
    return [name for name in _MAPS_OF_EXPERTS if getattr(options, name) and not has[name]]


def _format_missing_maps(missing: list[str], network: Mapping[str, Any]) -> str:
    *others, last = [_MAPS_OF_EXPERTS[name][0] for name in missing]
    names = f"{', '.join(others)} or {last}" if others else last
    has_decoder = network.get("aggregation", True)
    why = f"its fusion ({network.get('fusion')}) has no weights" if has_decoder else "it has no aggregation decoder"
    return f"This model has no {names}, because {why}"
