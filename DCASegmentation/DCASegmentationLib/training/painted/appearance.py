"""CT numbers of one painted case: phase, person, contents of the hollow organs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...phantom.contrast import PHASES, Contrast
from ...phantom.person import Person
from .anatomy import Lumen
from .tissues import INDEX, N_SHELLS, SHELL_MM, SHELLS, TISSUES
from .volumes import Field

# Pairs of phases, of which a scan lies somewhere between, and how often.
_TIMES: tuple[tuple[str, str, float], ...] = (
    ("none", "none", 0.22),
    ("arterial", "arterial", 0.08),
    ("arterial", "portal_venous", 0.18),
    ("portal_venous", "portal_venous", 0.30),
    ("portal_venous", "delayed", 0.14),
    ("delayed", "delayed", 0.08),
)
_GAS = -970.0


@dataclass(frozen=True)
class Appearance:
    """``hu``: CT number by tissue (256); ``texture``: SD in HU of its variation; ``vessel`` and ``vessel_share``: the
    CT number of the vessels in it and how thick they are (0: none)."""

    phase: str
    hu: Field
    texture: Field
    vessel: Field
    vessel_share: Field
    oral_contrast: bool
    lesion_hu: float | None = None

    @classmethod
    def draw(cls, random: np.random.Generator, wall_mm: tuple[float, float], phase: str | None = None) -> Appearance:
        """``wall_mm``: thickness of the muscles outside of the structures, least and most; ``phase``: one of
        ``PHASES``, drawn if None."""
        values, phase = _contrast(random, phase)
        spread = 28.0 if random.random() < 0.15 else 4.0
        fatty = float(random.uniform(10.0, 60.0)) if random.random() < 0.2 else float(random.uniform(-6.0, 8.0))
        values["liver"] -= fatty
        values["muscle"] += float(random.normal(-4.0, 7.0))
        values["fat"] += float(random.normal(0.0, 6.0))
        # Marrow loses bone and gains fat with age.
        values["cancellous_bone"] = float(random.uniform(40.0, 220.0))
        values["cortical_bone"] = float(random.uniform(250.0, 600.0))
        hu, texture = np.zeros(256, np.float32), np.zeros(256, np.float32)
        vessel, share = np.zeros(256, np.float32), np.zeros(256, np.float32)
        own = {name: float(random.normal(0.0, spread)) for name in sorted({t.hu for t in TISSUES})}
        lively = float(random.uniform(0.5, 1.6))
        lean = _infiltrated(random)
        for index, tissue in enumerate(TISSUES):
            soft = tissue.hu not in ("air", "gas", "fat", "lung")
            hu[index] = values[tissue.hu] + (own[tissue.hu] if soft else 0.0)
            texture[index] = tissue.texture * lively
            share[index] = tissue.vessels
            if tissue.organ in lean:
                lost, uneven = lean[tissue.organ]
                hu[index], texture[index] = hu[index] - lost, max(texture[index], uneven)
        vessel[:] = values["portal_blood"]
        vessel[INDEX["liver"]] = hu[INDEX["hepatic_vein"]] = _hepatic_blood(values, phase)
        vessel[INDEX["lung"]] = values["blood"] - 150.0
        share[INDEX["visceral_fat"]] *= float(random.uniform(0.4, 1.6))
        share[INDEX["liver"]] *= float(random.uniform(0.3, 1.2))
        if phase == "arterial":
            texture[INDEX["spleen"]] = float(random.uniform(10.0, 35.0))
        hu[INDEX["mediastinum"]] += float(random.uniform(20.0, 70.0))
        if random.random() < 0.08:
            # Ascites, or the dense fat of the very thin.
            hu[INDEX["visceral_fat"]] = float(random.uniform(-70.0, 20.0))
        texture[INDEX["colon_lumen"]] = float(random.choice([15.0, 60.0, 150.0, 260.0]))
        texture[INDEX["stomach_lumen"]] = float(random.choice([3.0, 15.0, 60.0]))
        oral = bool(random.random() < 0.25)
        _shells(hu, texture, share, values, wall_mm, random)
        lesion = None
        if random.random() < 0.3:
            # Cysts and metastases; early on some are brighter than the organ.
            lesion = float(random.choice([random.uniform(0.0, 20.0), values["liver"] - random.uniform(15.0, 60.0)]))
            if phase == "arterial" and random.random() < 0.3:
                lesion = values["liver"] + float(random.uniform(20.0, 70.0))
        return cls(phase, hu, texture, vessel, share, oral, lesion)

    def fill(self, name: str, lumen: Lumen, random: np.random.Generator) -> Field:
        """CT numbers of the voxels of a lumen."""
        wall = self.hu[INDEX[name.replace("lumen", "wall")]]
        count = lumen.n_stretches
        kinds = _filling(name, count, float(wall), float(self.hu[INDEX[name]]), self.oral_contrast, random)
        content, level, above = kinds
        value = content[lumen.stretch]
        gas = lumen.height > level[lumen.stretch]
        return np.where(gas, above[lumen.stretch], value).astype(np.float32)


def _contrast(random: np.random.Generator, phase: str | None) -> tuple[dict[str, float], str]:
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, not {phase!r}")
    shares = np.array([share for _, _, share in _TIMES])
    early, late, _ = _TIMES[int(random.choice(len(_TIMES), p=shares / shares.sum()))]
    if phase is not None:
        early = late = phase
    person = Person.draw(int(random.integers(2**31)))
    first, second = Contrast.of(person, early).hu, Contrast.of(person, late).hu
    mix = float(random.random())
    blank = Contrast.of(person, "none").hu
    # Dose, weight and circulation: enhancement differs more between patients than between phantoms.
    strength = float(random.uniform(0.7, 1.25))
    values = {}
    for name, base in blank.items():
        value = (1 - mix) * first[name] + mix * second[name]
        values[name] = base + strength * (value - base)
    return values, early if mix < 0.5 else late


def _infiltrated(random: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Organs that hold fat, as the pancreas and adrenal glands of many do: HU lost, and SD in HU of what remains."""
    found = {}
    if random.random() < 0.35:
        found["pancreas"] = (float(random.uniform(10.0, 65.0)), float(random.uniform(12.0, 32.0)))
    for organ in ("right_adrenal_gland", "left_adrenal_gland"):
        if random.random() < 0.25:
            found[organ] = (float(random.uniform(10.0, 45.0)), float(random.uniform(6.0, 16.0)))
    return found


def _hepatic_blood(values: dict[str, float], phase: str) -> float:
    """Hepatic and portal veins in the liver: darker than it without contrast, not yet filled early on."""
    return values["portal_blood"] if phase != "arterial" else 0.5 * (values["portal_blood"] + values["liver"])


def _shells(
    hu: Field, texture: Field, share: Field, values: dict[str, float], wall_mm: tuple[float, float],
    random: np.random.Generator,
) -> None:  # fmt: skip
    muscle = float(random.uniform(*wall_mm))
    fat = float(np.clip(random.gamma(2.2, 9.5), 3.0, SHELL_MM * N_SHELLS - muscle - 8.0))
    for k in range(N_SHELLS):
        depth, index = (k + 0.5) * SHELL_MM, SHELLS + k
        if depth < muscle:
            hu[index], texture[index] = values["muscle"], 14.0
        elif depth < muscle + fat:
            hu[index], texture[index], share[index] = values["fat"], 5.0, 0.25
        elif depth < muscle + fat + 2.2:
            hu[index], texture[index] = values["skin"], 4.0
        else:
            hu[index] = values["air"]


def _filling(
    name: str, count: int, wall: float, usual: float, oral: bool, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each stretch: what fills it (HU), above which height something else lies, and what (HU)."""
    content = usual + random.normal(0.0, 8.0, count)
    level, above = np.full(count, 2.0), np.full(count, _GAS)
    chance = random.random(count)
    if name == "bladder_lumen":
        if usual > 25.0:
            # Excreted contrast is heavy and lies at the back.
            content[:] = random.uniform(60.0, 600.0)
            level[:], above[:] = random.uniform(0.1, 1.2), random.uniform(5.0, 120.0)
        return content, level, above
    gas_share, collapsed, lowest = {
        "stomach_lumen": (0.75, 0.12, 0.35),
        "duodenum_lumen": (0.25, 0.5, 0.4),
        "colon_lumen": (0.6, 0.2, 0.0),
        "bowel_lumen": (0.12, 0.45, 0.3),
        "esophagus_lumen": (0.35, 0.5, 0.0),
    }[name]
    if name == "stomach_lumen":
        content[:] = random.choice([random.uniform(0, 25), random.uniform(25, 65)])
    if name == "colon_lumen":
        content = random.uniform(-60.0, 60.0, count)
    if oral and name != "esophagus_lumen":
        filled = random.random(count) < (0.85 if name == "stomach_lumen" else 0.55)
        content[filled] = float(random.uniform(120.0, 420.0)) * random.uniform(0.6, 1.2, int(filled.sum()))
    content[chance < collapsed] = wall
    with_gas = random.random(count) < gas_share
    with_gas &= chance >= collapsed
    level[with_gas] = random.uniform(lowest, 1.0, int(with_gas.sum()))
    return content, level, above
