"""Colon and small bowel: they fill what the organs leave free."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np

from .fields import Point, tube
from .materials import Hollow
from .person import Person, jitter, stream
from .structure import Structure

_STRETCH = 5
"""Capsules of small bowel that share one content and one level of gas."""


def bowel(person: Person) -> list[Structure]:
    """All loops of this person."""
    random = stream(person.seed, "bowel")
    return [*_colon(person, random), *_small_bowel(person, random)]


def _colon(person: Person, random: np.random.Generator) -> list[Structure]:
    sag, dx, dy = jitter(random, 14.0, 5.0, 4.0)
    front = -0.75 * person.visceral_fat_mm
    stretches: list[tuple[list[Point], float]] = [
        ([(-92, -8, -92), (-97, 6, -65), (-102 + dx, 14, -35), (-102, 10, -8)], 25.0),
        ([(-102, 10, -8), (-98, -22, 0), (-90, -50, -8), (-70, -74 + front, -16 - 0.5 * sag)], 22.0),
        ([(-70, -74 + front, -16 - 0.5 * sag), (-35, -80 + front, -24 - sag), (0, -82 + front, -26 - sag),
          (35, -80 + front, -16 - sag)], 19.0),
        ([(35, -80 + front, -16 - sag), (70, -68 + front, 10), (98, -46, 46), (112, -14, 76)], 19.0),
        ([(112, -14, 76), (113, 18, 58), (108, 28, 8), (108, 24 + dy, -30), (106, 14, -65)], 15.0),
        ([(106, 14, -65), (100, -4, -100), (78, -12, -132), (50, 0, -146)], 14.0),
        ([(50, 0, -146), (20, 12, -138), (-12, 20, -148), (-8, 36, -164), (2, 42, -172)], 14.0),
    ]  # fmt: skip
    structures = []
    for path, radius in stretches:
        filling = float(random.uniform(0.78, 1.12))
        lines = tube(path, radius * filling, pieces=5)
        # Haustra: the width swells and narrows from pouch to pouch.
        pouches = tuple(
            replace(c, start_radius=c.start_radius * swell, end_radius=c.end_radius * narrow)
            for c, swell, narrow in zip(lines, cycle((0.86, 1.06)), cycle((1.06, 0.86)), strict=False)
        )
        middle = float(np.mean([c.start[1] for c in lines]))
        gas = middle + float(random.uniform(-14, 8)) if random.random() < 0.75 else None
        content = "oral_contrast" if person.oral_contrast and random.random() < 0.5 else "feces"
        structures.append(
            Structure("colon", pouches, Hollow("bowel_wall", content, 2.2, 30.0, gas), gap=1.2, blend=2.0, wall_gap=2.5)
        )
    return structures


def _small_bowel(person: Person, random: np.random.Generator) -> list[Structure]:
    """A tube wound to and fro through the middle of the belly and into the pelvis, in three layers."""
    front = -0.7 * person.visceral_fat_mm
    spacing = float(random.uniform(26.5, 30))
    points: list[Point] = []
    for layer, (depth, top) in enumerate(((-10.0, 44.0), (-37.0, 40.0), (-64.0 + 0.6 * front, 10.0))):
        for row, z in enumerate(np.arange(top, -172.0, -spacing)):
            half = float(np.interp(z, (-170.0, -110.0, -60.0, 10.0), (38.0, 66.0, 90.0, 90.0)))
            # The deep layer is jejunum in the left flank; above the third part of the duodenum all loops lie left.
            right = -half if layer == 2 or (layer == 1 and z < -34) else 30.0
            if layer == 0 and z < -60:
                continue
            xs = np.arange(right, half + 1.0, spacing * 0.95)
            for x in xs if (row + layer) % 2 == 0 else xs[::-1]:
                dx, dy, dz = jitter(random, 6.0, 6.0, 8.0)
                points.append((float(x + dx), float(depth + dy), float(z + dz)))
    widths = random.uniform(11.0, 15.0, len(points))
    loops = tube(points, widths.tolist(), pieces=2)
    structures = []
    for first in range(0, len(loops), _STRETCH):
        stretch = loops[first : first + _STRETCH]
        middle = float(np.mean([c.start[1] for c in stretch]))
        gas = middle + float(random.uniform(-9, 2)) if random.random() < 0.25 else None
        contrast = person.oral_contrast and random.random() < 0.7
        material = Hollow("bowel_wall", "oral_contrast" if contrast else "bowel_fluid", 2.4, 8.0, gas)
        structures.append(Structure("small_bowel", stretch, material, gap=0.3, wall_gap=2.5))
    return structures
