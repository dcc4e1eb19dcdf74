"""Kidneys, adrenal glands, pancreas and duodenum."""

from __future__ import annotations

import numpy as np

from ..organs import AMOS
from .fields import Ellipsoid, Point, Shape, tube
from .materials import Hollow, Kidney, Solid
from .person import Person, jitter
from .structure import Structure


def kidneys_and_adrenals(person: Person, random: np.random.Generator) -> list[Structure]:
    """Both kidneys, then both adrenal glands, each in front of and above the upper pole of its kidney."""
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
    """A kidney beside the spine, its upper pole leaning inward and back, and its ureter."""
    turn, lean = jitter(random, 6.0, 3.0)
    degrees = (9 + lean, (-13 + lean) * side, (38 + turn) * side)
    body = Ellipsoid(center, (31.0 * scale, 25.5 * scale, 56.0 * scale), degrees)
    # The hilum opens inward and to the front; the sinus holds fat and the renal pelvis.
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
    """A ridge with two thin limbs behind it; ``pole`` is the height (mm) of the kidney's upper pole."""
    dx, dy, dz, spread = jitter(random, 1.5, 1.5, 2.0, 5.0)
    # The right gland sits on the pole behind the vena cava, the left one reaches down before it.
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
    """The C around the head of the pancreas, from the pylorus to the flexure left of the aorta."""
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
    """Head in the C of the duodenum, neck before the portal vein, body over the aorta, tail to the spleen's hilum."""
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
