"""Liver, gallbladder, spleen, stomach and esophagus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..organs import AMOS
from .fields import Array, Ellipsoid, Point, Region, smooth_maximum, smooth_minimum, tube
from .materials import Hollow, Layered, Solid
from .person import Person, jitter
from .structure import Structure
from .vessels import liver_vessels

PYLORUS: Point = (-26.0, -50.0, 44.0)


def esophagus(person: Person, random: np.random.Generator) -> Structure:
    """In front of the aorta through the hiatus to the inner side of the stomach."""
    dx, dy = jitter(random, 2.0, 1.5)
    # It ends at the inner side of the stomach, which lies further out when the stomach is empty.
    cardia = 63.0 - 34.0 * _stomach_scale(person)
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
    """Fundus under the left dome, body to the front, antrum across the midline to the pylorus."""
    volume = person.volumes_ml["stomach"]
    scale = _stomach_scale(person)
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
    # Gas fills the stomach from the front; its share says how far back the level stands.
    level = -64.0 - 8.0 * scale + 48.0 * person.stomach_gas
    content = "oral_contrast" if person.oral_contrast else "gastric_content"
    return Structure(
        "stomach", tube(path, radii.tolist(), 4), Hollow("gastric_wall", content, 4.0, 9.0, gas_in_front_of=level),
        label=AMOS.by_key["stomach"].label, blend=3.0, gap=1.0, wall_gap=3.5, diaphragm_gap=3.0, volume_ml=volume,
        give=14.0,
    )  # fmt: skip


def _stomach_scale(person: Person) -> float:
    """Width of the stomach relative to one of 385 ml; with its filling it widens more than it lengthens."""
    return float((person.volumes_ml["stomach"] / 385.0) ** 0.42)


def spleen(person: Person, random: np.random.Generator) -> Structure:
    """Behind the stomach under the left dome, along the tenth rib, hollow towards the stomach."""
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
    """A pear under the liver, its fundus to the front and below."""
    volume = person.volumes_ml["gallbladder"]
    scale = (volume / 46.0) ** (1 / 3)
    dx, dz = jitter(random, 5.0, 4.0)
    neck = np.array([-42.0, -30.0, 66.0])
    fundus = neck + np.array([-24 + dx, -42.0, -36 + dz]) * scale
    middle = 0.45 * neck + 0.55 * fundus
    path = [_point(neck), _point(middle), _point(fundus)]
    return Structure(
        "gallbladder", tube(path, [5 * scale, 14 * scale, 16 * scale], 4),
        Layered("gallbladder_wall", "bile", 1.8, 3.0), label=AMOS.by_key["gallbladder"].label, blend=3.0, gap=1.0,
        wall_gap=5.0, volume_ml=volume, give=8.0,
    )  # fmt: skip


def liver(person: Person, random: np.random.Generator) -> Structure:
    """What fills the right upper abdomen under the diaphragm, above an oblique lower surface; tapers to the left."""
    volume = person.volumes_ml["liver"]
    room = person.stature[0] * person.stature[1] * person.stature[2]
    excess = (volume / room) / 1710.0 - 1.0
    rise, lobe, depth, slope = jitter(random, 5.0, 9.0, 6.0, 0.05)
    phases = random.uniform(0.0, 2 * np.pi, 2)
    height = 12.0 - 115.0 * excess + rise
    left = 58.0 + lobe + 15.0 * excess
    left_lobe = Ellipsoid((left - 34.0, -66.0, 118.0), (62.0, 24.0, 30.0), (0.0, -14.0, -8.0))

    def distance(x: Array, y: Array, z: Array) -> Array:
        # The lower surface rises from the right edge to the left and, near the midline, to the back.
        lower = (height + (0.55 + slope) * np.maximum(x + 112.0, -20.0) + 0.22 * (y + 30.0) - z) / np.float32(1.18)
        # Its inner border runs from the left front to the vena cava, then beside the spine to the back.
        back = y - depth + 2.0
        behind = 0.8 * (x + 8.0 + np.where(back < 0, 0.72 * back, 0.42 * back))
        # Neither surface is flat.
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


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
