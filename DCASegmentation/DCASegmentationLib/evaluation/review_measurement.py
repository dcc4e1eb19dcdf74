"""Where the review leads, over many cases: a table of every case, its summary and a plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..inference.options import SegmentOptions
from ..inference.segmenter import Segmenter
from .review_cases import REPORT_SEEDS, draw_odd_scan, odd_phantom
from .review_reach import FIRST, ORDERS, Reached, TruthOfCase, reached

Progress = Callable[[float, str], None]

CURVE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)
"""Numbers of places for the plot."""

_AMOUNTS = tuple(each.name for each in fields(Reached) if each.name not in ("case", "order", "first"))


@dataclass
class ReviewMeasurement:
    """Rows of all cases. ``cases`` says of each what it is, its erroneous ml and its wrongly segmented organs."""

    rows: list[Reached] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, truth: TruthOfCase, **about: Any) -> None:
        """Measure one case; ``about`` goes into its entry."""
        self.rows += reached(truth, CURVE)
        self.cases.append(
            {
                "case": truth.case,
                **about,
                "error_ml": round(truth.error_ml, 1),
                "wrong_organs": [organ.key for organ in truth.wrong_organs],
            }
        )

    def mean(self, order: str, first: int) -> dict[str, float]:
        """Means over the cases of what the first places of an order reach; NaN where no case has anything to reach."""
        chosen = [row for row in self.rows if (row.order, row.first) == (order, first)]
        table = {name: np.array([getattr(row, name) for row in chosen], float) for name in _AMOUNTS}
        return {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
            for name, values in table.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The cases, and means by order and number of places; shares 0 to 1, null where there was nothing."""
        return {
            "cases": self.cases,
            "means": {
                order: {
                    str(first): {name: _number(value) for name, value in self.mean(order, first).items()}
                    for first in FIRST
                }
                for order in ORDERS
            },
        }

    def write_csv(self, path: Path) -> None:
        """One line for each case, order and number of places."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [each.name for each in fields(Reached)])
            writer.writeheader()
            for row in self.rows:
                values = asdict(row)
                writer.writerow(values | {name: _number(values[name]) for name in _AMOUNTS})


def measure_on_phantoms(
    measured: ReviewMeasurement,
    segmenter: Segmenter,
    count: int,
    first_seed: int = REPORT_SEEDS,
    progress: Progress | None = None,
) -> None:
    """Add ``count`` people unlike those of the training to ``measured``."""
    for index in range(count):
        seed = first_seed + index
        phantom = odd_phantom(seed)
        add_case(measured, segmenter, f"phantom {seed}", phantom.ct, phantom.labels, **asdict(draw_odd_scan(seed)))
        if progress is not None:
            progress((index + 1) / count, f"Phantom {index + 1} of {count}")


def add_case(
    measured: ReviewMeasurement,
    segmenter: Segmenter,
    case: str,
    ct: sitk.Image,
    truth: sitk.Image,
    known: Sequence[int] | None = None,
    **about: Any,
) -> None:
    """Segment ``ct`` and measure its review against ``truth`` on the same grid; ``known`` as in ``TruthOfCase``."""
    result = segmenter.segment(ct, SegmentOptions(review=True))
    places = len(result.review.review.places) if result.review else 0
    measured.add(TruthOfCase(case, result, truth, segmenter.vocabulary, known), **about, places=places)


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
