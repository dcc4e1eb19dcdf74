"""The abdominal and pelvic organs of a person."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from ...organs import AMOS
from .materials import Hollow, Kidney, Layered, Solid
from .person import Person, create_rng, jitter
from .shapes import Array, Ellipsoid, Point, Region, Shape, smooth_maximum, smooth_minimum, tube
from .structure import Structure
from .vessels import liver_vessels

PYLORUS: Point = (-26.0, -50.0, 44.0)


def esophagus(person: Person, random: np.random.Generator) -> Structure:
    """The esophagus: in front of the aorta, through the hiatus, to the inner side of the stomach."""
    dx, dy = jitter(random, 2.0, 1.5)
    # The inner side of the stomach is further out when the stomach is empty.
    cardia = 63.0 - 34.0 * _compute_stomach_scale(person)
    path = [
        (4, 0, 330),
        (3 + dx, -2, 240),
        (4 + dx, -5, 203),
        (7 + dx, -10 + dy, 176),
        (12 + dx, -16 + dy, 152),
        (0.5 * (12 + dx + cardia), -18 + dy, 142),
        (cardia, -16, 134),
    ]
    gas = -6.0 if random.random() < 0.3 else None
    return Structure(
        "esophagus", tube(path, [9, 9, 9, 9, 8.5, 8.5, 8], 3, flatness=1.3),
        Hollow("esophageal_wall", "bowel_fluid", 4.0, gas_in_front_of=gas), label=AMOS.by_key["esophagus"].label,
        gap=0.8, wall_gap=None, diaphragm_gap=None, volume_ml=person.volumes_ml["esophagus"], give=3.0,
    )  # fmt: skip


def stomach(person: Person, random: np.random.Generator) -> Structure:
    """The stomach: fundus under the left dome, body toward the front, antrum across the midline to the pylorus."""
    volume = person.volumes_ml["stomach"]
    scale = _compute_stomach_scale(person)
    sag, dx, dy = jitter(random, 10.0, 5.0, 4.0)
    sag += 14 * (scale - 1)
    path = [
        (62 + dx, -6, 147),
        (68 + dx, -16 + dy, 125),
        (67 + dx, -33 + dy, 96 - 0.4 * sag),
        (52 + dx, -52 + dy, 66 - 0.8 * sag),
        (28, -66 + dy, 44 - sag),
        (2, -66 + 0.5 * dy, 38 - 0.8 * sag),
        (PYLORUS[0] + 6, PYLORUS[1] - 5, PYLORUS[2] - 2),
        PYLORUS,
    ]
    radii = np.array([30.0, 34.0, 31.0, 26.0, 22.0, 17.0, 11.0, 9.0]) * np.array([scale] * 6 + [1.0, 1.0])
    # Gas fills the stomach from the front; the gas fraction sets how far back the level is.
    level = -64.0 - 8.0 * scale + 48.0 * person.stomach_gas
    content = "oral_contrast" if person.oral_contrast else "gastric_content"
    return Structure(
        "stomach", tube(path, radii.tolist(), 4), Hollow("gastric_wall", content, 4.0, 9.0, gas_in_front_of=level),
        label=AMOS.by_key["stomach"].label, blend=3.0, gap=1.0, wall_gap=3.5, diaphragm_gap=3.0, volume_ml=volume,
        give=14.0,
    )  # fmt: skip


def _compute_stomach_scale(person: Person) -> float:
    """Width of the stomach relative to a stomach of 385 ml. A full stomach is wider rather than longer."""
    return float((person.volumes_ml["stomach"] / 385.0) ** 0.42)


def spleen(person: Person, random: np.random.Generator) -> Structure:
    """The spleen: behind the stomach under the left dome, along the tenth rib, concave toward the stomach."""
    volume = person.volumes_ml["spleen"]
    scale = (volume / 160.0) ** (1 / 3)
    dx, dy, dz, turn = jitter(random, 3.0, 5.0, 6.0, 7.0)
    center = (100 + dx, 27 + dy, 106 + dz)
    body = Ellipsoid(center, (29 * scale, 47 * scale, 54 * scale), (-28 + turn, 8, 28 + turn))
    hollow = Ellipsoid((48, -14, center[2] + 4), (42, 44, 60))
    return Structure(
        "spleen", (body,), Solid("spleen", 5.0), label=AMOS.by_key["spleen"].label, carved=(hollow,), gap=1.5,
        wall_gap=3.5, diaphragm_gap=3.0, volume_ml=volume, give=28.0,
    )  # fmt: skip


def gallbladder(person: Person, random: np.random.Generator) -> Structure:
    """The gallbladder: a pear under the liver, with its fundus toward the front and down."""
    volume = person.volumes_ml["gallbladder"]
    scale = (volume / 46.0) ** (1 / 3)
    dx, dz = jitter(random, 5.0, 4.0)
    neck = np.array([-42.0, -30.0, 66.0])
    fundus = neck + np.array([-24 + dx, -42.0, -36 + dz]) * scale
    middle = 0.45 * neck + 0.55 * fundus
    path = [_to_point(neck), _to_point(middle), _to_point(fundus)]
    return Structure(
        "gallbladder", tube(path, [5 * scale, 14 * scale, 16 * scale], 4),
        Layered("gallbladder_wall", "bile", 1.8, 3.0), label=AMOS.by_key["gallbladder"].label, blend=3.0, gap=1.0,
        wall_gap=5.0, volume_ml=volume, give=8.0,
    )  # fmt: skip


def liver(person: Person, random: np.random.Generator) -> Structure:
    """The liver: fills the right upper abdomen between the diaphragm and an oblique lower surface; tapers to the
    left."""
    volume = person.volumes_ml["liver"]
    room = person.stature[0] * person.stature[1] * person.stature[2]
    excess = (volume / room) / 1710.0 - 1.0
    rise, lobe, depth, slope = jitter(random, 5.0, 9.0, 6.0, 0.05)
    phases = random.uniform(0.0, 2 * np.pi, 2)
    height = 12.0 - 115.0 * excess + rise
    left = 58.0 + lobe + 15.0 * excess
    left_lobe = Ellipsoid((left - 34.0, -66.0, 118.0), (62.0, 24.0, 30.0), (0.0, -14.0, -8.0))

    def distance(x: Array, y: Array, z: Array) -> Array:
        # The lower surface rises from right to left and, near the midline, to the back.
        lower = (height + (0.55 + slope) * np.maximum(x + 112.0, -20.0) + 0.22 * (y + 30.0) - z) / np.float32(1.18)
        # The inner border runs from the left front to the vena cava, then along the spine to the back.
        back = y - depth + 2.0
        behind = 0.8 * (x + 8.0 + np.where(back < 0, 0.72 * back, 0.42 * back))
        # Make both surfaces uneven.
        lower = lower + 4.0 * np.sin(x / 19.0 + y / 31.0 + phases[0])
        behind = behind + 4.0 * np.sin(y / 17.0 + z / 29.0 + phases[1])
        far_left = 0.86 * (x - left) + 0.5 * (z - 120.0)
        shape = smooth_maximum(lower.astype(np.float32), behind.astype(np.float32), 18.0)
        shape = smooth_maximum(shape, far_left.astype(np.float32), 14.0)
        return smooth_minimum(shape, left_lobe(x, y, z), 16.0).astype(np.float32)

    region = Region(distance, ((-175.0, -150.0, -60.0), (100.0, 100.0, 200.0)))
    return Structure(
        "liver", (region,), Solid("liver", 5.0), label=AMOS.by_key["liver"].label, gap=1.5, wall_gap=3.5,
        diaphragm_gap=2.5, volume_ml=volume, give=25.0, inlays=((liver_vessels(random), Solid("portal_blood", 3.0)),),
    )  # fmt: skip


def _to_point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def kidneys_and_adrenals(person: Person, random: np.random.Generator) -> list[Structure]:
    """Both kidneys, then both adrenal glands, which are in front of and above the upper pole of their kidney."""
    kidneys: list[Structure] = []
    adrenals: list[Structure] = []
    for side, middle in ((-1.0, (-62.0, 24.0, 12.0)), (1.0, (62.0, 22.0, 28.0))):
        name = "left" if side > 0 else "right"
        scale = (person.volumes_ml[f"{name}_kidney"] / 145.0) ** (1 / 3)
        shift = jitter(random, 3.0, 2.0, 7.0)
        center = (middle[0] + shift[0] + 30 * (scale - 1.05) * side, middle[1] + shift[1], middle[2] + shift[2])
        kidneys += _kidney(person, f"{name}_kidney", side, center, scale, random)
        pole = center[2] + 52.0 * scale
        adrenals.append(_adrenal(person, f"{name}_adrenal_gland", side, pole, random))
    return kidneys + adrenals


def _kidney(
    person: Person, key: str, side: float, center: Point, scale: float, random: np.random.Generator
) -> list[Structure]:
    """A kidney next to the spine, with its upper pole tilted inward and back, and its ureter."""
    turn, lean = jitter(random, 6.0, 3.0)
    degrees = (9 + lean, (-13 + lean) * side, (38 + turn) * side)
    body = Ellipsoid(center, (31.0 * scale, 25.5 * scale, 56.0 * scale), degrees)
    # The hilum opens inward and to the front; the sinus contains fat and the renal pelvis.
    hilum = (center[0] - 24 * scale * side, center[1] - 13 * scale, center[2] - 2)
    sinus = Ellipsoid(hilum, (17 * scale, 9 * scale, 19 * scale), degrees)
    path = [
        (hilum[0] + 8 * side, hilum[1] + 4, hilum[2]),
        (hilum[0] - 1 * side, hilum[1] + 1, hilum[2] - 8),
        (40 * side, 2, -45),
        (44 * side, -8, -92),
        (48 * side, 18, -150),
        (30 * side, 6, -208),
    ]
    ureter = tube(path, [6, 4.5, 2.2, 2.0, 2.0, 2.0], 3)
    return [
        Structure(
            key, (body,), Kidney(6.5 * scale), label=AMOS.by_key[key].label, carved=(sinus,), gap=1.0, wall_gap=3.0,
            diaphragm_gap=3.0, volume_ml=person.volumes_ml[key], give=7.0,
        ),
        Structure(f"{key}_ureter", ureter, Solid("renal_pelvis", 2.0), gap=0.4, wall_gap=None, diaphragm_gap=None),
    ]  # fmt: skip


def _adrenal(person: Person, key: str, side: float, pole: float, random: np.random.Generator) -> Structure:
    """An adrenal gland: a ridge with two thin limbs; ``pole`` is the height (mm) of the kidney's upper pole."""
    dx, dy, dz, spread = jitter(random, 1.5, 1.5, 2.0, 5.0)
    # The right gland is on the pole behind the vena cava; the left one extends down in front of it.
    x, y = (38.0 + dx, 5.0 + dy) if side > 0 else (-38.0 + dx, 21.0 + dy)
    z = float(np.clip(pole - 3.0 if side > 0 else pole + 8.0, 66.0, 100.0)) + dz
    limbs: tuple[Shape, ...] = (
        Ellipsoid((x, y - 6, z), (3.6, 7.5, 13.0), (8, 0, 12 * side)),
        Ellipsoid((x - 3.5 * side, y + 6, z - 4), (2.5, 14.0, 16.0), (10, 0, (16 + spread) * side)),
        Ellipsoid((x + 6.0 * side, y + 5, z - 4), (2.5, 13.0, 15.0), (10, 0, (-34 + spread) * side)),
    )
    return Structure(
        key, limbs, Solid("adrenal", 5.0), label=AMOS.by_key[key].label, blend=4.0, gap=0.8, wall_gap=2.0,
        diaphragm_gap=1.0, volume_ml=person.volumes_ml[key], give=3.0,
    )  # fmt: skip


def duodenum(person: Person, random: np.random.Generator, pylorus: Point) -> Structure:
    """The duodenum: a C around the head of the pancreas, from the pylorus to the flexure left of the aorta."""
    volume = person.volumes_ml["duodenum"]
    scale = float(np.sqrt(volume / 62.0))
    dx, dy, dz = jitter(random, 3.0, 2.0, 5.0)
    path = [
        pylorus,
        (-41 + dx, -46 + dy, 46),
        (-50 + dx, -32 + dy, 34),
        (-52 + dx, -25 + dy, 10),
        (-46 + dx, -26 + dy, -14 + dz),
        (-26, -33, -26 + dz),
        (6, -37, -25 + dz),
        (28, -32, -10 + dz),
        (33, -28, 8),
        (36, -36, 18),
    ]
    radii = np.array([9.0, 11.0, 10.5, 10.0, 10.0, 9.0, 8.0, 8.5, 8.5, 8.0]) * scale
    gas = float(random.uniform(-52, -38)) if random.random() < 0.5 else None
    return Structure(
        "duodenum", tube(path, radii.tolist(), 3), Hollow("bowel_wall", "bowel_fluid", 2.8, gas_in_front_of=gas),
        label=AMOS.by_key["duodenum"].label, blend=1.0, gap=1.0, volume_ml=volume, give=5.0,
    )  # fmt: skip


def pancreas(person: Person, random: np.random.Generator) -> Structure:
    """The pancreas.

    The head is in the C of the duodenum, the neck in front of the portal vein, the body over the aorta, and the tail
    near the hilum of the spleen.
    """
    volume = person.volumes_ml["pancreas"]
    scale = float((volume / 68.0) ** 0.45)
    tail, rise, dy = jitter(random, 5.0, 7.0, 3.0)
    path = [
        (-30, -36, 4),
        (-29, -39, 22),
        (-22, -43, 36),
        (-6, -45 + dy, 46),
        (14, -42 + dy, 54),
        (38, -24 + dy, 64 + 0.5 * rise),
        (60, -6 + dy, 78 + rise),
        (80 + tail, 10, 90 + rise),
    ]
    radii = np.array([10.0, 14.0, 13.0, 9.5, 9.5, 10.0, 9.5, 7.0]) * scale
    uncinate = tube([(-28, -36, 8), (-16, -31, 10)], [11 * scale, 6 * scale], 2)
    return Structure(
        "pancreas", (*tube(path, radii.tolist(), 3), *uncinate), Solid("pancreas", 9.0),
        label=AMOS.by_key["pancreas"].label, blend=4.0, gap=0.8, volume_ml=volume, give=8.0,
    )  # fmt: skip


def rectum(random: np.random.Generator) -> Structure:
    """The rectum: along the hollow of the sacrum to the anus."""
    width = float(random.uniform(0.85, 1.2))
    path = [(2, 42, -172), (0, 50, -195), (0, 47, -218), (0, 36, -240), (0, 38, -262), (0, 46, -290)]
    radii = (np.array([14.0, 18.0, 18.0, 14.0, 10.0, 9.0]) * width).tolist()
    gas = float(random.uniform(30, 44)) if random.random() < 0.6 else None
    return Structure(
        "rectum", tube(path, radii, 3), Hollow("bowel_wall", "feces", 3.5, 25.0, gas), gap=1.5, wall_gap=None,
        diaphragm_gap=None, blend=2.0,
    )  # fmt: skip


def prostate_or_uterus(person: Person, random: np.random.Generator) -> list[Structure]:
    """Prostate below the bladder and seminal vesicles behind it, or uterus behind and above it, ovaries and vagina."""
    volume = person.volumes_ml["prostate_uterus"]
    label = AMOS.by_key["prostate_uterus"].label
    if person.sex == "male":
        scale = (volume / 27.0) ** (1 / 3)
        dy, dz = jitter(random, 2.0, 2.5)
        gland = Ellipsoid((0, -17 + dy, -244 + dz), (23 * scale, 16 * scale, 17 * scale), (15, 0, 0))
        vesicles = tuple(
            capsule for side in (-1, 1)
            for capsule in tube([(5 * side, 6, -222), (26 * side, 14, -208)], [4.5, 5.5], 2)
        )  # fmt: skip
        return [
            _make_unconfined(
                "prostate_uterus", (gland,), Solid("prostate", 7.0), label=label, volume_ml=volume, give=6.0
            ),
            _make_unconfined("seminal_vesicles", vesicles, Solid("bladder_wall", 6.0)),
        ]
    scale = (volume / 85.0) ** (1 / 3)
    side, tip, dz = jitter(random, 7.0, 6.0, 4.0)
    # From the cervix up to the fundus, bent to the front over the bladder.
    path = [(0, 12, -226), (0.3 * side, 11, -208), (0.8 * side, 0, -188 + dz), (side, -18 + tip, -176 + dz)]
    radii = (np.array([12.0, 13.0, 20.0, 23.0]) * scale).tolist()
    uterus = tube(path, radii, 4)
    ovaries = tuple(Ellipsoid((38 * s + side, 8, -175), (9, 12, 14), (0, 20 * s, 0)) for s in (-1, 1))
    vagina = tube([(0, 14, -232), (0, 8, -262)], [9, 8], 2, flatness=1.8)
    return [
        _make_unconfined(
            "prostate_uterus", uterus, Solid("uterus", 9.0), label=label, volume_ml=volume, give=8.0, blend=4.0
        ),
        _make_unconfined("ovaries", ovaries, Layered("uterus", "bile", 5.0, 5.0)),
        _make_unconfined("vagina", vagina, Solid("bladder_wall", 5.0)),
    ]


def bladder(person: Person, random: np.random.Generator) -> Structure:
    """The bladder: behind the pubic bones; it fills upward from its fixed base."""
    volume = person.volumes_ml["bladder"]
    radius = (volume / (4 / 3 * np.pi)) ** (1 / 3) * 10.0
    dx, dy = jitter(random, 3.0, 2.0)
    base = -229.0 if person.sex == "male" else -238.0
    shape = Ellipsoid((dx, -30 + dy, base + 0.9 * radius), (1.16 * radius, 0.95 * radius, 0.92 * radius), (-12, 0, 0))
    return Structure(
        "bladder", (shape,), Layered("bladder_wall", "urine", 3.0, 2.0), label=AMOS.by_key["bladder"].label, gap=1.0,
        wall_gap=2.0, diaphragm_gap=None, volume_ml=volume, give=16.0,
    )  # fmt: skip


def _make_unconfined(
    key: str, parts: tuple[Shape, ...], material: Solid | Layered, label: int = 0, volume_ml: float | None = None,
    give: float = 6.0, blend: float = 0.0,
) -> Structure:  # fmt: skip
    return Structure(
        key, parts, material, label=label, gap=1.0, wall_gap=None, diaphragm_gap=None, volume_ml=volume_ml, give=give,
        blend=blend,
    )  # fmt: skip


_STRETCH = 5
"""Number of capsules of small bowel with the same content and gas level."""


def bowel(person: Person) -> list[Structure]:
    """Colon and small bowel."""
    random = create_rng(person.seed, "bowel")
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
        # Haustra: the width alternates from pouch to pouch.
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
    """A tube that winds back and forth through the middle of the abdomen and the pelvis, in three layers."""
    front = -0.7 * person.visceral_fat_mm
    spacing = float(random.uniform(26.5, 30))
    points: list[Point] = []
    for layer, (depth, top) in enumerate(((-10.0, 44.0), (-37.0, 40.0), (-64.0 + 0.6 * front, 10.0))):
        for row, z in enumerate(np.arange(top, -172.0, -spacing)):
            half = float(np.interp(z, (-170.0, -110.0, -60.0, 10.0), (38.0, 66.0, 90.0, 90.0)))
            # The deep layer is jejunum in the left flank; above the third part of the duodenum all loops are on the
            # left.
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
