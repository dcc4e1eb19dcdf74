"""How much a case needs a look, from the review that the segmentation leaves where it makes one.

The one place of this package that knows the format of ``review.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

REVIEW = "review.json"
_VERSION = 1
_MOST_REASONS = 3


def review_score(folder: Path) -> tuple[float, tuple[str, ...]] | None:
    """Milliliters expected to be wrong over all places, and what is wrong at the first ones; None without a review."""
    try:
        review = json.loads((folder / REVIEW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if review.get("format") != "dca-review" or review.get("version") != _VERSION:
        return None
    places = review["places"]
    reasons = tuple(f"{place['name']}: {place['reasons'][0]['text']}" for place in places[:_MOST_REASONS])
    return sum(float(place["expected_wrong_ml"]) for place in places), reasons
