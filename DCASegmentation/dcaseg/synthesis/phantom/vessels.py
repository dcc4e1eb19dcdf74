"""Heart, aorta, vena cava, portal vein and their branches."""

from __future__ import annotations

import numpy as np

from ...organs import AMOS
from .materials import Layered, Solid
from .person import Person, jitter
from .shapes import Ellipsoid, Shape, tube
from .structure import Structure

_ARTERY = Solid("arterial_blood", 3.0)
_CAVA = Solid("caval_blood", 4.0)
_PORTAL = Solid("portal_blood", 3.0)


def heart(random: np.random.Generator) -> Structure:
    """The part of the heart on the diaphragm."""
    dx, dy = jitter(random, 4.0, 3.0)
    parts = (Ellipsoid((24 + dx, -46 + dy, 218), (62, 46, 52), (0, 25, -25)),)
    return Structure(
        "heart", parts, Layered("heart_muscle", "blood", 10.0, 6.0), gap=1.0, wall_gap=3.0, diaphragm_gap=2.0,
        thoracic=True,
    )  # fmt: skip


def great_vessels(person: Person, random: np.random.Generator) -> list[Structure]:
    """Aorta down to its bifurcation, vena cava from its confluence to the right atrium, and iliac vessels."""
    sway = float(jitter(random, 3.0)[0])
    aorta = tube(
        [(20, 20, 330), (20, 13, 230), (20, 10, 190), (18 + sway, 5, 148), (14 + sway, -4, 88), (12 + sway, -10, 54),
         (10 + sway, -14, 18), (9 + sway, -17, -19), (7 + sway, -17, -48)],
        [12, 11.5, 11, 10.8, 10, 9.5, 9, 8.6, 8.4],
    )  # fmt: skip
    lean = float(jitter(random, 2.0)[0])
    cava = tube(
        [(-13, -14, -62), (-17 + lean, -14, -19), (-19 + lean, -13, 18), (-21 + lean, -9, 54), (-24, -3, 88),
         (-27, 0, 115), (-26, -8, 150), (-22, -20, 178), (-20, -28, 192)],
        [9.0, 10, 10.5, 11, 11.5, 12, 12.5, 13, 13], flatness=1.25,
    )  # fmt: skip
    structures = [
        _make_organ(person, "aorta", aorta, _ARTERY, gap=0.5, give=3.5),
        _make_organ(person, "inferior_vena_cava", cava, _CAVA, gap=0.5, give=4.0),
    ]
    for side in (-1.0, 1.0):
        artery = tube(
            [(7 + sway + 2 * side, -18, -51), (24 * side, -10, -82), (42 * side, 2, -118), (58 * side, -12, -150),
             (70 * side, -48, -200), (76 * side, -62, -250), (80 * side, -50, -330)],
            [5.5, 5.5, 5, 4.6, 4.4, 4.2, 4], 3,
        )  # fmt: skip
        structures.append(_make_unconfined("iliac_artery", artery, _ARTERY, 0.4))
        vein = tube(
            [(-12 + 3 * side, -12, -66), (18 * side, -2, -92), (40 * side, 14, -124), (54 * side, 0, -155),
             (62 * side, -42, -202), (64 * side, -58, -250), (66 * side, -46, -330)],
            [7, 6.5, 6, 5.5, 5.2, 5, 5], 3,
        )  # fmt: skip
        structures.append(_make_unconfined("iliac_vein", vein, _CAVA, 0.4))
    return structures


def visceral_vessels(random: np.random.Generator) -> list[Structure]:
    """Portal, splenic and mesenteric veins, celiac trunk, mesenteric artery, and renal arteries and veins."""
    dx = float(jitter(random, 2.0)[0])
    portal = tube([(-8 + dx, -32, 42), (-18, -29, 58), (-30, -26, 76), (-40, -27, 90)], [6.8, 6.8, 6.6, 6.0], 3)
    superior = tube(
        [(-8 + dx, -32, 42), (-9, -38, 25), (-7, -46, 5), (-5, -50, -15), (-15, -48, -45), (-35, -45, -70)],
        [6.2, 5.6, 5.2, 4.4, 3.2, 2.2], 3,
    )  # fmt: skip
    splenic = tube([(-8 + dx, -32, 42), (20, -22, 54), (48, 1, 72), (76, 25, 92)], [5.4, 4.8, 4.4, 3.6], 3)
    mesenteric_path = [(10, -20, 48), (7, -34, 36), (5, -40, 18), (3, -47, -8), (-6, -46, -50)]
    mesenteric = tube(mesenteric_path, [3.6, 3.6, 3.4, 3, 2], 3)
    celiac = tube([(12, -14, 64), (10, -30, 66), (-4, -32, 68), (-24, -34, 74)], [3.6, 3.4, 2.8, 2.4], 2)
    splenic_artery = tube([(10, -30, 66), (34, -12, 72), (56, 2, 84), (78, 16, 98)], [2.8, 2.6, 2.4, 2.0], 3)
    renal = (
        *tube([(12, -6, 32), (-20, 8, 28), (-40, 18, 22)], [2.8, 2.6, 2.2], 2),
        *tube([(12, -6, 38), (26, 8, 36), (44, 16, 34)], [2.8, 2.6, 2.2], 2),
    )
    renal_vein = (
        *tube([(-22, -6, 24), (-42, 12, 18)], [4.4, 3.6], 2),
        *tube([(-16, -11, 34), (10, -27, 34), (28, -8, 36), (44, 10, 32)], [4.0, 3.2, 4.2, 3.6], 3),
    )
    return [
        _make_unconfined("portal_and_splenic_vein", (*portal, *superior, *splenic), _PORTAL, 0.5),
        _make_unconfined("mesenteric_artery", mesenteric, _ARTERY, 0.5),
        _make_unconfined("celiac_trunk", (*celiac, *splenic_artery), _ARTERY, 0.5),
        _make_unconfined("renal_arteries", renal, _ARTERY, 0.5),
        _make_unconfined("renal_veins", renal_vein, _CAVA, 0.4),
    ]


def mesenteric_branches(random: np.random.Generator) -> Structure:
    """Thin vessels from the root of the mesentery to the bowel."""
    branches: list[Shape] = []
    for _ in range(14):
        x, z = random.uniform(-85, 85), random.uniform(-130, 0)
        y = random.uniform(-80, -40)
        branches += tube([(-4, -47, -15), (0.5 * x, -55, 0.55 * z - 8), (x, y, z)], [2.4, 1.8, 1.2], 2)
    return Structure("mesenteric_branches", tuple(branches), _PORTAL, gap=0.5)


def lung_vessels(random: np.random.Generator) -> Structure:
    """Branches of the pulmonary vessels in the bases of the lungs."""
    branches: list[Shape] = []
    for side in (-1.0, 1.0):
        for _ in range(9):
            x, y, z = side * random.uniform(60, 118), random.uniform(-55, 65), random.uniform(140, 200)
            middle = (side * 55.0, 0.5 * y + 8, 0.4 * z + 135)
            branches += tube([(side * 34, 10, 240), middle, (x, y, z)], [4.0, 2.6, 1.2], 2)
    return Structure("lung_vessels", tuple(branches), _CAVA, gap=1.0, wall_gap=8.0, diaphragm_gap=6.0, thoracic=True)


def liver_vessels(random: np.random.Generator) -> tuple[Shape, ...]:
    """Hepatic veins and portal branches inside the liver."""
    j = jitter(random, *(5.0,) * 9)
    hepatic = [
        ([(-26, -10, 158), (-58, 0 + j[0], 140), (-95, 8, 105 + j[1])], [5.5, 4.2, 2.2]),
        ([(-25, -14, 158), (-38, -40 + j[2], 140), (-50, -68, 100 + j[3])], [5.0, 4.0, 2.2]),
        ([(-23, -16, 158), (-2, -44 + j[4], 138), (22, -70, 118 + j[5])], [5.0, 3.8, 2.0]),
    ]
    portal = [
        ([(-40, -27, 90), (-62, -12, 98), (-92, 2 + j[6], 92), (-112, 10, 70)], [6.0, 5.2, 3.8, 2.2]),
        ([(-62, -12, 98), (-80, -34 + j[7], 112), (-100, -42, 120)], [4.6, 3.6, 2.2]),
        ([(-40, -27, 90), (-26, -46, 104), (2, -64 + j[8], 108)], [5.4, 4.6, 2.6]),
    ]
    return tuple(capsule for points, radii in hepatic + portal for capsule in tube(points, radii, 2))


def _make_organ(
    person: Person, key: str, parts: tuple[Shape, ...], material: Solid, gap: float, give: float
) -> Structure:
    return Structure(
        key, parts, material, label=AMOS.by_key[key].label, gap=gap, wall_gap=None, diaphragm_gap=None,
        volume_ml=person.volumes_ml[key], give=give,
    )  # fmt: skip


def _make_unconfined(key: str, parts: tuple[Shape, ...], material: Solid, gap: float) -> Structure:
    return Structure(key, parts, material, gap=gap, wall_gap=None, diaphragm_gap=None)
