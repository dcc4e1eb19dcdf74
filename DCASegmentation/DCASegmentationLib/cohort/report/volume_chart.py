"""Organ volumes of a cohort as one drawing (SVG): a row for each organ, a dot for each case, the usual range behind."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape

from ...organs import Vocabulary

_WIDTH, _ROW, _TOP, _LEFT, _RIGHT = 960, 34, 12, 170, 92
_LOW_ML, _HIGH_ML = 0.5, 4000.0
_TICKS_ML = (1, 3, 10, 30, 100, 300, 1000, 3000)
_SPREAD = 9.0
_RADIUS = 3.2


def volume_chart(volumes: Sequence[tuple[str, Mapping[str, float]]], vocabulary: Vocabulary) -> str:
    """SVG of ``volumes``: (name of the case, organ key to ml), on a logarithmic axis in ml.

    Cases in which an organ was not found are counted at the right; volumes beyond the axis lie at its ends.
    """
    height = _TOP + _ROW * len(vocabulary) + 34
    bottom = _TOP + _ROW * len(vocabulary)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Volumes of the organs" class="chart">',
        *(
            f'<line x1="{_x(tick):.1f}" x2="{_x(tick):.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
            f'<text x="{_x(tick):.1f}" y="{bottom + 16}" class="tick">{tick}</text>'
            for tick in _TICKS_ML
        ),
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{bottom + 31}" class="tick">ml</text>',
    ]
    for row, organ in enumerate(vocabulary):
        middle = _TOP + _ROW * (row + 0.5)
        low, high = organ.volume_ml
        known = [(name, each[organ.key]) for name, each in volumes if organ.key in each]
        parts.append(f'<text x="{_LEFT - 12}" y="{middle + 4:.1f}" class="organ">{escape(organ.name)}</text>')
        parts.append(
            f'<rect x="{_x(low):.1f}" y="{middle - 12:.1f}" width="{_x(high) - _x(low):.1f}" height="24" rx="4" '
            f'class="usual"><title>usual: {low:g} to {high:g} ml</title></rect>'
        )
        color = "#{:02x}{:02x}{:02x}".format(*organ.color)
        for name, ml in known:
            if ml > 0:
                outside = "" if low <= ml <= high else " outside"
                parts.append(
                    f'<circle cx="{_x(ml):.1f}" cy="{middle + _jitter(name, organ.key):.1f}" r="{_RADIUS}" '
                    f'fill="{color}" class="dot{outside}"><title>{escape(name)}: {ml:.4g} ml</title></circle>'
                )
        found = sorted(ml for _, ml in known if ml > 0)
        if found:
            at = _x(found[len(found) // 2])
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{middle - 12}" y2="{middle + 12}" class="median"/>')
        missing = len(known) - len(found)
        if missing:
            parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{middle + 4:.1f}" class="missing">{missing} none</text>')
    return "".join([*parts, "</svg>"])


def _x(ml: float) -> float:
    within = min(max(ml, _LOW_ML), _HIGH_ML)
    share = math.log(within / _LOW_ML) / math.log(_HIGH_ML / _LOW_ML)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _jitter(name: str, organ: str) -> float:
    """Apart from its neighbors, and in the same place in each report."""
    byte = hashlib.sha256(f"{name}{organ}".encode()).digest()[0]
    return (byte / 255 * 2 - 1) * _SPREAD
