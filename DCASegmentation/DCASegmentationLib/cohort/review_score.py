"""How much a case needs a look, from the review that the segmentation makes of its own result."""

from __future__ import annotations

from pathlib import Path

from ..review_file import REVIEW, read_review

_MOST_REASONS = 3


def review_score(folder: Path) -> tuple[float, tuple[str, ...]] | None:
    """Milliliters expected to be wrong over all places, and why at the first ones; None without a review."""
    file = folder / REVIEW
    if not file.is_file():
        return None
    places = read_review(file).places
    # Each names its organ. Of a finding that several places share, the text is the same.
    reasons = tuple(dict.fromkeys(place.reasons[0].text for place in places if place.reasons))[:_MOST_REASONS]
    return sum(place.expected_wrong_ml for place in places), reasons
