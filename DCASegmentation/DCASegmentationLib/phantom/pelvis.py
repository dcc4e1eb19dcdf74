"""Bladder, prostate or uterus, rectum."""

from __future__ import annotations

import numpy as np

from ..organs import AMOS
from .fields import Ellipsoid, Shape, tube
from .materials import Hollow, Layered, Solid
from .person import Person, jitter
from .structure import Structure


def rectum(random: np.random.Generator) -> Structure:
    """Along the hollow of the sacrum to the anus."""
    width = float(random.uniform(0.85, 1.2))
    path = [(2, 42, -172), (0, 50, -195), (0, 47, -218), (0, 36, -240), (0, 38, -262), (0, 46, -290)]
    radii = (np.array([14.0, 18.0, 18.0, 14.0, 10.0, 9.0]) * width).tolist()
    gas = float(random.uniform(30, 44)) if random.random() < 0.6 else None
    return Structure(
        "rectum", tube(path, radii, 3), Hollow("bowel_wall", "feces", 3.5, 25.0, gas), gap=1.5, wall_gap=None,
        diaphragm_gap=None, blend=2.0,
    )  # fmt: skip


def prostate_or_uterus(person: Person, random: np.random.Generator) -> list[Structure]:
    """A man's prostate below the bladder, with seminal vesicles behind it; a woman's uterus behind and above it."""
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
            _free("prostate_uterus", (gland,), Solid("prostate", 7.0), label=label, volume_ml=volume, give=6.0),
            _free("seminal_vesicles", vesicles, Solid("bladder_wall", 6.0)),
        ]
    scale = (volume / 85.0) ** (1 / 3)
    side, tip, dz = jitter(random, 7.0, 6.0, 4.0)
    # Bent to the front over the bladder, from the cervix up to the fundus.
    path = [(0, 12, -226), (0.3 * side, 11, -208), (0.8 * side, 0, -188 + dz), (side, -18 + tip, -176 + dz)]
    radii = (np.array([12.0, 13.0, 20.0, 23.0]) * scale).tolist()
    uterus = tube(path, radii, 4)
    ovaries = tuple(Ellipsoid((38 * s + side, 8, -175), (9, 12, 14), (0, 20 * s, 0)) for s in (-1, 1))
    vagina = tube([(0, 14, -232), (0, 8, -262)], [9, 8], 2, flatness=1.8)
    return [
        _free("prostate_uterus", uterus, Solid("uterus", 9.0), label=label, volume_ml=volume, give=8.0, blend=4.0),
        _free("ovaries", ovaries, Layered("uterus", "bile", 5.0, 5.0)),
        _free("vagina", vagina, Solid("bladder_wall", 5.0)),
    ]


def bladder(person: Person, random: np.random.Generator) -> Structure:
    """Behind the pubic bones; it fills upward from its fixed base."""
    volume = person.volumes_ml["bladder"]
    radius = (volume / (4 / 3 * np.pi)) ** (1 / 3) * 10.0
    dx, dy = jitter(random, 3.0, 2.0)
    base = -229.0 if person.sex == "male" else -238.0
    shape = Ellipsoid((dx, -30 + dy, base + 0.9 * radius), (1.16 * radius, 0.95 * radius, 0.92 * radius), (-12, 0, 0))
    return Structure(
        "bladder", (shape,), Layered("bladder_wall", "urine", 3.0, 2.0), label=AMOS.by_key["bladder"].label, gap=1.0,
        wall_gap=2.0, diaphragm_gap=None, volume_ml=volume, give=16.0,
    )  # fmt: skip


def _free(
    key: str, parts: tuple[Shape, ...], material: Solid | Layered, label: int = 0, volume_ml: float | None = None,
    give: float = 6.0, blend: float = 0.0,
) -> Structure:  # fmt: skip
    return Structure(
        key, parts, material, label=label, gap=1.0, wall_gap=None, diaphragm_gap=None, volume_ml=volume_ml, give=give,
        blend=blend,
    )  # fmt: skip
