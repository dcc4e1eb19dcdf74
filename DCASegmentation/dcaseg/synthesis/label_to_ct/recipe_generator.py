"""Draws random recipes: variations of the given anatomies with random contrast and scanners."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from ...organs import AMOS
from ..phantom.person import PHASES, Contrast, Person
from .anatomy import CHANGING, Anatomy
from .recipe import Appearance, Arm, Deformation, FieldOfView, Filling, Lesions, Recipe, Scanner, Table
from .tissues import LUMENS, N_SHELLS, SHELL_MM, TISSUES

ScanRange = Literal["abdomen", "cut", "upper", "chest", "trunk", "pelvis", "slab", "chest_only", "pelvis_only"]

# Probability of each scan range. Scans of the abdomen often reach far into the chest, and a network that has never
# seen a heart labels it as liver. Short and cut scans teach the network that organs may be absent.
_SCAN_RANGES: dict[ScanRange, float] = {
    "abdomen": 0.22, "cut": 0.09, "upper": 0.12, "chest": 0.10, "trunk": 0.08, "pelvis": 0.07, "slab": 0.25,
    "chest_only": 0.03, "pelvis_only": 0.04,
}  # fmt: skip
# Range (mm) by which the surface of an organ moves outward.
_GROWTH_MM = {
    "liver": (-9.0, 10.0), "spleen": (-4.0, 13.0), "right_kidney": (-4.0, 4.0), "left_kidney": (-4.0, 4.0),
    "stomach": (-12.0, 14.0), "gallbladder": (-4.0, 7.0), "pancreas": (-3.5, 3.0), "aorta": (-3.0, 4.5),
    "inferior_vena_cava": (-3.5, 3.5), "bladder": (-11.0, 16.0), "duodenum": (-2.5, 4.0), "colon": (-5.0, 7.0),
    "bowel": (-4.0, 5.0), "heart": (-6.0, 8.0), "psoas": (-6.0, 5.0), "lung": (-6.0, 4.0),
    "prostate_uterus": (-4.0, 8.0),
}  # fmt: skip
# SD of the shift of an organ, relative to the distance over which the body yields to it.
_SHIFT = 0.15
_FIXED = ("lung", "colon", "bowel", "psoas", "aorta")
# Pairs of phases between which a scan is taken, and their probability.
_TIMES: tuple[tuple[str, str, float], ...] = (
    ("none", "none", 0.24),
    ("arterial", "arterial", 0.08),
    ("arterial", "portal_venous", 0.17),
    ("portal_venous", "portal_venous", 0.29),
    ("portal_venous", "delayed", 0.14),
    ("delayed", "delayed", 0.08),
)
_GAS = -970.0


def draw_recipe(
    seed: int,
    anatomies: Sequence[Anatomy],
    phase: str | None = None,
    partners: Mapping[str, Collection[str]] | None = None,
    scan_range: ScanRange | None = None,
    attempt: int = 0,
) -> Recipe:
    """Draw the recipe of ``seed``. The same arguments give the same recipe.

    ``phase`` is one of ``PHASES``, ``scan_range`` the scanned part of the body; both are drawn if None. ``partners``
    maps names of anatomies to the names of those that they can be blended with. Different values of ``attempt`` give
    different recipes for the same seed. Raises ValueError for an unknown ``phase``.
    """
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, not {phase!r}")
    random = np.random.default_rng([seed, 7, attempt])
    anatomy = anatomies[int(random.integers(len(anatomies)))]
    deformation = _draw_deformation(anatomy, sorted((partners or {}).get(anatomy.name, ())), random)
    appearance = _draw_appearance(anatomy, phase, random)
    prone = bool(random.random() < 0.06)
    missing = _draw_missing_organs(anatomy, random)
    arms = random.random() < 0.12
    view = _draw_field_of_view(anatomy, deformation, appearance, arms, scan_range, random)
    table = None
    if random.random() < 0.7:
        table = Table(
            gap_mm=float(random.uniform(1.0, 22.0)),
            radius_mm=float(random.uniform(280.0, 900.0)),
            thickness_mm=float(random.uniform(8.0, 40.0)),
            skin_hu=float(random.uniform(-500.0, 150.0)),
            core_hu=float(random.uniform(-990.0, -850.0)),
        )
    return Recipe(
        seed=int(random.integers(2**31)),
        anatomy=anatomy.name,
        deformation=deformation,
        appearance=appearance,
        field_of_view=view,
        scanner=_draw_scanner(random),
        table=table,
        arms=_draw_arms(anatomy, deformation, appearance, random) if arms else (),
        missing=missing,
        prone=prone,
    )


def compute_body_box(anatomy: Anatomy, deformation: Deformation, layers_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Two corners (x, y, z) in mm of the body with ``layers_mm`` of muscle and fat, before it is deformed."""
    scale = np.array(deformation.scale)
    low, high = ((corner - anatomy.center) * scale for corner in anatomy.trunk)
    around = np.array([layers_mm, layers_mm, 0.0]) * scale
    return low - around, high + around


def _draw_deformation(anatomy: Anatomy, partners: Sequence[str], random: np.random.Generator) -> Deformation:
    size = float(np.clip(random.normal(0.99, 0.09), 0.77, 1.3))
    scale = size * np.exp(np.clip(random.normal(0.0, (0.06, 0.08, 0.06)), -0.15, 0.15))
    growth = {}
    for structure in anatomy.changes:
        low, high = _GROWTH_MM[structure]
        growth[structure] = float(random.uniform(low, high) * random.choice([0.4, 1.0]))
    # Visceral fat separates the loops of the bowel and the organs.
    if random.random() < 0.45:
        for structure in ("bowel", "colon", "stomach", "pancreas", "duodenum"):
            if structure in growth:
                growth[structure] = 0.6 * _GROWTH_MM[structure][0]
    shift = {}
    for structure in anatomy.changes:
        if structure not in _FIXED:
            x, y, z = _SHIFT * CHANGING[structure] * np.clip(random.normal(0.0, (1.0, 1.0, 1.3)), -2.5, 2.5)
            shift[structure] = (float(x), float(y), float(z))
    degrees = np.clip(random.normal(0.0, (4.0, 4.0, 6.0)), -12.0, 12.0)
    elastic = np.array([10.0, 5.5, 1.9]) * random.uniform(0.4, 1.25)
    blend: dict[str, float] = {}
    if partners and random.random() < 0.85:
        count = int(random.integers(1, min(3, len(partners)) + 1))
        chosen = random.choice(len(partners), count, replace=False)
        shares = random.dirichlet(np.ones(count)) * random.uniform(0.2, 1.2)
        blend = {partners[int(i)]: float(share) for i, share in zip(chosen, shares, strict=True)}
    return Deformation(_as_triple(scale), _as_triple(degrees), _as_triple(elastic), blend, growth, shift)


def _as_triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _draw_appearance(anatomy: Anatomy, phase: str | None, random: np.random.Generator) -> Appearance:
    values, phase = _draw_contrast(random, phase)
    spread = 28.0 if random.random() < 0.15 else 4.0
    values["liver"] -= float(random.uniform(10.0, 60.0)) if random.random() < 0.2 else float(random.uniform(-6.0, 8.0))
    values["muscle"] += float(random.normal(-4.0, 7.0))
    values["fat"] += float(random.normal(0.0, 6.0))
    # With age, marrow loses bone and gains fat.
    values["cancellous_bone"] = float(random.uniform(40.0, 220.0))
    values["cortical_bone"] = float(random.uniform(250.0, 600.0))
    own = {name: float(random.normal(0.0, spread)) for name in sorted({t.hu for t in TISSUES})}
    lively = float(random.uniform(0.5, 1.6))
    lean = _draw_fatty_infiltration(random)
    hu, texture, vessels = {}, {}, {}
    for tissue in TISSUES:
        soft = tissue.hu not in ("air", "gas", "fat", "lung")
        hu[tissue.name] = values[tissue.hu] + (own[tissue.hu] if soft else 0.0)
        texture[tissue.name] = tissue.texture * lively
        vessels[tissue.name] = tissue.vessels
        if tissue.organ in lean:
            lost, uneven = lean[tissue.organ]
            hu[tissue.name] -= lost
            texture[tissue.name] = max(texture[tissue.name], uneven)
    hu["skin"], hu["air"] = values["skin"], values["air"]
    # Hepatic and portal veins in the liver are not yet filled in the arterial phase.
    blood = values["portal_blood"]
    hu["hepatic_vein"] = blood if phase != "arterial" else 0.5 * (blood + values["liver"])
    vessel_hu = {"": blood, "liver": hu["hepatic_vein"], "lung": values["blood"] - 150.0}
    vessels["visceral_fat"] *= float(random.uniform(0.4, 1.6))
    vessels["liver"] *= float(random.uniform(0.3, 1.2))
    if phase == "arterial":
        texture["spleen"] = float(random.uniform(10.0, 35.0))
    hu["mediastinum"] += float(random.uniform(20.0, 70.0))
    if random.random() < 0.08:
        # Ascites, or the dense fat of very thin people.
        hu["visceral_fat"] = float(random.uniform(-70.0, 20.0))
    texture["colon_lumen"] = float(random.choice([15.0, 60.0, 150.0, 260.0]))
    texture["stomach_lumen"] = texture["viscus_lumen"] = float(random.choice([3.0, 15.0, 60.0]))
    oral = bool(random.random() < 0.25)
    # If the map has no muscles of the abdominal wall, they are added around all its structures.
    muscle = float(random.uniform(*((0.0, 5.0) if "wall_muscle" in anatomy.levels else (4.0, 13.0))))
    fat = float(np.clip(random.gamma(2.2, 9.5), 3.0, SHELL_MM * N_SHELLS - muscle - 8.0))
    lesions = None
    if random.random() < 0.3:
        # Cysts and metastases; in the arterial phase some are brighter than the organ.
        lesion = float(random.choice([random.uniform(0.0, 20.0), values["liver"] - random.uniform(15.0, 60.0)]))
        if phase == "arterial" and random.random() < 0.3:
            lesion = values["liver"] + float(random.uniform(20.0, 70.0))
        lesions = Lesions(lesion, float(random.uniform(18.0, 45.0)), float(random.uniform(1.6, 2.4)))
    fillings = {name: _draw_filling(name, hu, oral, random) for name in LUMENS}
    effusion = float(random.uniform(0.08, 0.45)) if random.random() < 0.12 else None
    return Appearance(phase, hu, texture, vessels, vessel_hu, muscle, fat, fillings, effusion, lesions)


def _draw_contrast(random: np.random.Generator, phase: str | None) -> tuple[dict[str, float], str]:
    shares = np.array([share for _, _, share in _TIMES])
    early, late, _ = _TIMES[int(random.choice(len(_TIMES), p=shares / shares.sum()))]
    if phase is not None:
        early = late = phase
    person = Person.draw(int(random.integers(2**31)))
    first, second = Contrast.from_person(person, early).hu, Contrast.from_person(person, late).hu
    mix = float(random.random())
    blank = Contrast.from_person(person, "none").hu
    # Dose, weight and circulation make enhancement vary more between patients than between phantoms.
    strength = float(random.uniform(0.7, 1.25))
    values = {}
    for name, base in blank.items():
        value = (1 - mix) * first[name] + mix * second[name]
        values[name] = base + strength * (value - base)
    return values, early if mix < 0.5 else late


def _draw_fatty_infiltration(random: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Organs with fatty infiltration (pancreas, adrenal glands): the decrease in HU, and the SD in HU of the result."""
    found = {}
    if random.random() < 0.35:
        found["pancreas"] = (float(random.uniform(10.0, 65.0)), float(random.uniform(12.0, 32.0)))
    for organ in ("right_adrenal_gland", "left_adrenal_gland"):
        if random.random() < 0.25:
            found[organ] = (float(random.uniform(10.0, 45.0)), float(random.uniform(6.0, 16.0)))
    return found


def _draw_filling(name: str, hu: Mapping[str, float], oral: bool, random: np.random.Generator) -> Filling:
    count, usual, wall = LUMENS[name], hu[name], hu[name.replace("lumen", "wall")]
    content = usual + random.normal(0.0, 8.0, count)
    level, above = np.full(count, 2.0), np.full(count, _GAS)
    chance = random.random(count)
    if name == "bladder_lumen":
        if usual > 25.0:
            # Excreted contrast agent is heavy and collects at the back.
            content[:] = random.uniform(60.0, 600.0)
            level[:], above[:] = random.uniform(0.1, 1.2), random.uniform(5.0, 120.0)
        return _as_filling(content, level, above)
    gas_share, collapsed, lowest = {
        "stomach_lumen": (0.75, 0.12, 0.35),
        "viscus_lumen": (0.75, 0.12, 0.35),
        "duodenum_lumen": (0.25, 0.5, 0.4),
        "colon_lumen": (0.6, 0.2, 0.0),
        "bowel_lumen": (0.12, 0.45, 0.3),
        "esophagus_lumen": (0.35, 0.5, 0.0),
    }[name]
    if name in ("stomach_lumen", "viscus_lumen"):
        content[:] = random.choice([random.uniform(0, 25), random.uniform(25, 65)])
    if name == "colon_lumen":
        content = random.uniform(-60.0, 60.0, count)
    if oral and name != "esophagus_lumen":
        filled = random.random(count) < (0.85 if name == "stomach_lumen" else 0.55)
        content[filled] = float(random.uniform(120.0, 420.0)) * random.uniform(0.6, 1.2, int(filled.sum()))
    content[chance < collapsed] = wall
    with_gas = (random.random(count) < gas_share) & (chance >= collapsed)
    level[with_gas] = random.uniform(lowest, 1.0, int(with_gas.sum()))
    return _as_filling(content, level, above)


def _as_filling(content: np.ndarray, level: np.ndarray, above: np.ndarray) -> Filling:
    return Filling(tuple(content.tolist()), tuple(level.tolist()), tuple(above.tolist()))


def _draw_missing_organs(anatomy: Anatomy, random: np.random.Generator) -> tuple[str, ...]:
    """Draw removed organs: sometimes the gallbladder, a kidney or the spleen. Fat takes their place."""
    chances = random.random(4)
    removed = []
    if chances[0] < 0.12:
        removed.append("gallbladder")
    if chances[1] < 0.05:
        removed.append("right_kidney" if chances[2] < 0.5 else "left_kidney")
    if chances[3] < 0.02:
        removed.append("spleen")
    return tuple(key for key in removed if AMOS.by_key[key].label not in anatomy.unannotated)


def _draw_scanner(random: np.random.Generator) -> Scanner:
    return Scanner(
        slice_mm=float(random.choice([1.0, 1.5, 2.5, 3.0, 5.0, random.uniform(1.0, 5.0), random.uniform(1.0, 7.0)])),
        noise_hu=float(np.clip(random.gamma(3.0, 4.0), 2.5, 45.0)),
        correlated=float(random.uniform(0.0, 0.6)),
        blur=float(random.choice([0.0, random.uniform(-0.15, 0.4)])),
        gain=float(random.normal(1.0, 0.02)),
        offset_hu=float(random.normal(0.0, 4.0)),
    )


def _draw_z_range(anatomy: Anatomy, scan_range: ScanRange | None, random: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest level of the scan, in mm of the label map."""
    levels = anatomy.levels
    end = (len(anatomy.tissues) - 1) * anatomy.spacing[2]
    liver_low, liver = levels["liver"]
    kidney = min(levels.get(name, levels["liver"])[0] for name in ("right_kidney", "left_kidney"))
    bottom = levels.get("bladder", (0.0, 0.0))[0]
    ranges = list(_SCAN_RANGES)
    drawn = ranges[int(random.choice(len(ranges), p=list(_SCAN_RANGES.values())))]
    scan_range = scan_range or drawn
    least = 120.0
    if scan_range == "abdomen":
        low, high = bottom - random.uniform(-5, 55), liver + random.uniform(3, 60)
    elif scan_range == "cut":
        low, high = bottom + random.uniform(-40, 60), liver - random.uniform(0, 45)
    elif scan_range == "upper":
        low, high = kidney - random.uniform(-40, 70), liver + random.uniform(-10, 50)
    elif scan_range == "chest":
        low, high = kidney - random.uniform(-70, 60), liver + random.uniform(40, 260)
    elif scan_range == "trunk":
        low, high = bottom - random.uniform(-5, 55), liver + random.uniform(60, 260)
    elif scan_range == "pelvis":
        low, high = bottom - random.uniform(-5, 55), kidney + random.uniform(-20, 110)
    elif scan_range == "slab":
        least = float(random.uniform(30.0, 110.0))
        low = random.uniform(bottom, liver + 10.0 - least)
        high = low + least
    elif scan_range == "chest_only":
        least = 60.0
        low = liver_low + random.uniform(0.6, 1.1) * (liver - liver_low)
        high = low + random.uniform(90.0, 260.0)
    else:
        least = 60.0
        low, high = bottom - random.uniform(-10, 60), bottom + random.uniform(50.0, 110.0)
    low = float(np.clip(low, 0.0, max(end - least, 0.0)))
    return low, max(min(float(high), end), min(low + least, end))


def _draw_field_of_view(
    anatomy: Anatomy,
    deformation: Deformation,
    appearance: Appearance,
    arms: bool,
    scan_range: ScanRange | None,
    random: np.random.Generator,
) -> FieldOfView:
    low, high = _draw_z_range(anatomy, scan_range, random)
    corner, opposite = compute_body_box(anatomy, deformation, appearance.muscle_mm + appearance.fat_mm)
    cut = random.random() < 0.14
    margins = random.uniform(-40.0, 5.0, 4) if cut else random.uniform(2.0, 34.0, 4)
    if arms and not cut:
        margins[:2] = random.uniform(50.0, 95.0, 2)
    scale_z, middle = deformation.scale[2], anatomy.center[2]
    start = (float(corner[0] - margins[0]), float(corner[1] - margins[2]), float((low - middle) * scale_z))
    end = (float(opposite[0] + margins[1]), float(opposite[1] + margins[3]), float((high - middle) * scale_z))
    extent = (end[0] - start[0], end[1] - start[1], end[2] - start[2])
    radius, center = None, (0.0, 0.0)
    if random.random() < 0.35:
        radius = float(random.uniform(0.44, 0.62)) * max(extent[0], extent[1])
        center = (
            float((start[0] + end[0]) / 2 + random.normal(0, 12)),
            float((start[1] + end[1]) / 2 + random.normal(0, 12)),
        )
    return FieldOfView(start, extent, radius, center)


def _draw_arms(
    anatomy: Anatomy, deformation: Deformation, appearance: Appearance, random: np.random.Generator
) -> tuple[Arm, ...]:
    """Arms next to the trunk, for patients who cannot lift them."""
    low, high = compute_body_box(anatomy, deformation, appearance.muscle_mm + appearance.fat_mm)
    thickness = float(random.uniform(0.8, 1.25))
    arms = []
    for edge, side in ((low[0], -1.0), (high[0], 1.0)):
        x = float(edge + side * random.uniform(36.0, 56.0) * thickness)
        y = float(low[1] + random.uniform(0.3, 0.75) * (high[1] - low[1]))
        lean = random.normal(0.0, 0.06, 2)
        arms.append(Arm((x, y), (float(lean[0]), float(lean[1])), thickness, bool(random.random() < 0.5)))
    return tuple(arms)
