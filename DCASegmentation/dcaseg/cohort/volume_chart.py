"""Draws the organ volumes of a cohort as SVG: a row for each organ, with its cases over the usual range.

A small cohort is drawn with a dot for each case, a large one with histograms: many dots would overlap, and the page
would grow with the cohort.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape

from ..organs import Organ

_WIDTH, _ROW, _TOP, _LEFT, _RIGHT = 960, 34, 28, 160, 150
_LOW_ML, _HIGH_ML = 0.5, 4000.0
_TICKS_ML = (1, 3, 10, 30, 100, 300, 1000, 3000)
_MAX_DOTS = 150
_SPREAD = 9.0
_RADIUS = 3.2
_BAR, _MAX_BAR = 5.0, 26.0


def draw_volume_chart(volumes: Sequence[tuple[str, Mapping[str, float]]], vocabulary: Collection[Organ]) -> str:
    """Draw ``volumes``, pairs of case name and volumes (ml) by organ key, on a logarithmic axis; returns SVG.

    The median and the number of cases without the organ are on the right. Volumes beyond the axis are drawn at its
    ends.
    """
    bottom = _TOP + _ROW * len(vocabulary)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 34}" role="img" aria-label="Volumes of the organs" class="chart">',
        f'<text x="{_WIDTH - _RIGHT + 62}" y="{_TOP - 12}" class="value">median</text>',
        *(
            f'<line x1="{_compute_x(tick):.1f}" x2="{_compute_x(tick):.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
            f'<text x="{_compute_x(tick):.1f}" y="{bottom + 16}" class="tick">{tick}</text>'
            for tick in _TICKS_ML
        ),
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{bottom + 31}" class="tick">ml</text>',
    ]
    for row, organ in enumerate(vocabulary):
        known = [(name, by_organ[organ.key]) for name, by_organ in volumes if organ.key in by_organ]
        parts += _draw_row(organ, known, _TOP + _ROW * (row + 0.5))
    return "".join([*parts, "</svg>"])


def format_chart_caption(cases: int) -> str:
    """The caption of a chart of ``cases`` cases."""
    band = "Band: usual range for adults; line: median"
    if cases > _MAX_DOTS:
        return f"Histograms of {cases} cases. {band}; red: outside the band."
    return f"Each dot is a case. {band}; red outline: outside the band."


def _draw_row(organ: Organ, known: list[tuple[str, float]], middle: float) -> Iterator[str]:
    low, high = organ.volume_ml
    left, right = _compute_x(low), _compute_x(high)
    yield f'<text x="{_LEFT - 12}" y="{middle + 4:.1f}" class="organ">{escape(organ.name)}</text>'
    yield (
        f'<rect x="{left:.1f}" y="{middle - 13:.1f}" width="{right - left:.1f}" height="26" rx="4" '
        f'class="usual"><title>usual: {low:g} to {high:g} ml</title></rect>'
    )
    found = [(name, ml) for name, ml in known if ml > 0]
    yield from _draw_histogram(organ, found, middle) if len(known) > _MAX_DOTS else _draw_dots(organ, found, middle)
    if found:
        median = statistics.median(ml for _, ml in found)
        at = f"{_compute_x(median):.1f}"
        yield f'<line x1="{at}" x2="{at}" y1="{middle - 13:.1f}" y2="{middle + 13:.1f}" class="median"/>'
        shown = f"{median:.1f}" if median < 10 else f"{median:.0f}"
        yield f'<text x="{_WIDTH - _RIGHT + 62}" y="{middle + 4:.1f}" class="value">{shown} ml</text>'
    missing = len(known) - len(found)
    if missing:
        yield f'<text x="{_WIDTH - _RIGHT + 76}" y="{middle + 4:.1f}" class="missing">{missing} without</text>'


def _draw_dots(organ: Organ, found: list[tuple[str, float]], middle: float) -> Iterator[str]:
    color = "#{:02x}{:02x}{:02x}".format(*organ.color)
    low, high = organ.volume_ml
    for name, ml in found:
        outside = "" if low <= ml <= high else " outside"
        yield (
            f'<circle cx="{_compute_x(ml):.1f}" cy="{middle + _compute_jitter(name, organ.key):.1f}" r="{_RADIUS}" '
            f'fill="{color}" class="dot{outside}"><title>{escape(name)}: {ml:.4g} ml</title></circle>'
        )


def _draw_histogram(organ: Organ, found: list[tuple[str, float]], middle: float) -> Iterator[str]:
    """A histogram. A bar that contains an end of the usual range is split there."""
    low, high = organ.volume_ml
    counts = Counter((math.floor(_compute_x(ml) / _BAR), low <= ml <= high) for _, ml in found)
    most = max((counts[index, True] + counts[index, False] for index, _ in counts), default=1)
    color = "#{:02x}{:02x}{:02x}".format(*organ.color)
    for (index, inside), count in sorted(counts.items()):
        height = _MAX_BAR * count / most
        below = _MAX_BAR * counts[index, False] / most if inside else 0.0
        yield (
            f'<rect x="{index * _BAR:.1f}" y="{middle + 13 - below - height:.1f}" width="{_BAR - 0.5}" '
            f'height="{height:.1f}" fill="{color}" class="bar{"" if inside else " outside"}">'
            f"<title>{count} case{'s' if count > 1 else ''}</title></rect>"
        )


def _compute_x(ml: float) -> float:
    clipped = min(max(ml, _LOW_ML), _HIGH_ML)
    fraction = math.log(clipped / _LOW_ML) / math.log(_HIGH_ML / _LOW_ML)
    return _LEFT + fraction * (_WIDTH - _LEFT - _RIGHT)


def _compute_jitter(name: str, organ: str) -> float:
    """Vertical offset that separates neighboring dots and is the same in every report."""
    byte = hashlib.sha256(f"{name}{organ}".encode()).digest()[0]
    return (byte / 255 * 2 - 1) * _SPREAD
