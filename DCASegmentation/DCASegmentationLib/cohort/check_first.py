"""The order in which cases want to be looked at, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..organs import Organ, Vocabulary
from .case import OK
from .ledger import Entry

# A missing organ counts as much as one of a tenth of its smallest usual volume.
_MISSING = math.log(10.0)


@dataclass(frozen=True)
class Concern:
    """A case to look at: the higher ``score`` first; ``reviewed`` tells whether it is the review's."""

    entry: Entry
    score: float
    reasons: tuple[str, ...]
    reviewed: bool


def concerns(entries: list[Entry], vocabulary: Vocabulary) -> list[Concern]:
    """Cases with results that give reason to look at them, the most urgent first.

    By the review's score (ml expected to be wrong) where cases have one, then by how far organ volumes lie outside
    of their usual ranges, as a sum of logarithms.
    """
    found = [_concern(entry, vocabulary) for entry in entries if entry.status == OK and entry.outcome is not None]
    return sorted((one for one in found if one.reasons), key=lambda one: (not one.reviewed, -one.score))


def off_range(ml: float, organ: Organ) -> float:
    """How far a volume lies outside of the usual range: natural logarithm of the ratio, negative below; 0 inside."""
    low, high = organ.volume_ml
    if ml <= 0 or organ.is_stray(ml):
        return -_MISSING
    if ml < low:
        return max(math.log(ml / low), -_MISSING)
    return math.log(ml / high) if ml > high else 0.0


def _concern(entry: Entry, vocabulary: Vocabulary) -> Concern:
    assert entry.outcome is not None
    volumes = entry.outcome.volumes_ml
    off = {organ: off_range(volumes[organ.key], organ) for organ in vocabulary if organ.key in volumes}
    for organ in off:
        # How large it is nobody knows, but that it is no smaller.
        if organ.key in entry.outcome.cut_off:
            off[organ] = max(off[organ], 0.0)
    worst = sorted((organ for organ in off if off[organ]), key=lambda organ: -abs(off[organ]))
    words = tuple(_words(organ, volumes[organ.key]) for organ in worst)
    if entry.outcome.concern is not None:
        return Concern(entry, entry.outcome.concern, entry.outcome.concerns + words, True)
    return Concern(entry, sum(map(abs, off.values())), words, False)


def _rounded(ml: float) -> str:
    """Three digits, and no exponent."""
    return f"{ml:.3g}" if ml < 1000 else f"{round(ml, 2 - math.floor(math.log10(ml))):.0f}"


def _words(organ: Organ, ml: float) -> str:
    if ml <= 0 or organ.is_stray(ml):
        return f"{organ.name} not found"
    low, high = organ.volume_ml
    side = "below" if ml < low else "above"
    return f"{organ.name} {_rounded(ml)} ml, {side} the usual {low:g} to {high:g}"
