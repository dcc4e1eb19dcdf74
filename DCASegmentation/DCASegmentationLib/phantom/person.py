"""Who lies in the scanner: sex, size, fat, organ volumes and shape of one synthetic person."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..organs import AMOS

# Mean volumes in ml (male, female) and the spread (SD of the logarithm) between persons. Liver to stomach: Geraghty
# 2004 and ICRP 89; the others from the ranges of reference CTs. The esophagus counts from the scan's top down only.
_VOLUMES_ML: dict[str, tuple[float, float, float]] = {
    "spleen": (238.0, 180.0, 0.18),
    "right_kidney": (193.0, 157.0, 0.12),
    "left_kidney": (195.0, 160.0, 0.12),
    "gallbladder": (48.0, 40.0, 0.28),
    "esophagus": (20.0, 16.0, 0.15),
    "liver": (1710.0, 1411.0, 0.13),
    "stomach": (385.0, 355.0, 0.28),
    "aorta": (85.0, 65.0, 0.16),
    "inferior_vena_cava": (75.0, 63.0, 0.15),
    "pancreas": (87.0, 66.0, 0.17),
    "right_adrenal_gland": (5.0, 4.3, 0.16),
    "left_adrenal_gland": (5.6, 4.6, 0.16),
    "duodenum": (62.0, 54.0, 0.17),
    "bladder": (210.0, 200.0, 0.38),
    "prostate_uterus": (27.0, 78.0, 0.22),
}
_RANGE_MARGIN = 0.06
"""Drawn volumes stay this share inside the ordinary adult range."""


@dataclass(frozen=True)
class Person:
    """One synthetic person; everything the anatomy is built from follows from these numbers.

    ``stature`` holds the sizes along left-right, front-back and head-foot relative to the reference body (a man of
    1.76 m); ``volumes_ml`` the organs' volumes the shapes are fitted to; fat in mm of thickness.
    """

    seed: int
    sex: str
    stature: tuple[float, float, float]
    subcutaneous_fat_mm: float
    visceral_fat_mm: float
    stomach_gas: float
    oral_contrast: bool
    volumes_ml: dict[str, float]

    @classmethod
    def draw(cls, seed: int) -> Person:
        """The person of this seed."""
        random = stream(seed, "person")
        male = bool(random.random() < 0.5)
        height = random.normal(1.0 if male else 0.935, 0.035)
        build = random.normal(0.0, 0.035)
        fatness = random.beta(2.0, 2.6)
        visceral = fatness * (44.0 if male else 30.0) * random.uniform(0.6, 1.15)
        subcutaneous = 5.0 + fatness * (26.0 if male else 36.0) * random.uniform(0.7, 1.15)
        width = (1.0 if male else 0.95) * (1.0 + build)
        depth = (1.0 if male else 0.96) * (1.0 + build + random.normal(0.0, 0.015))
        size = float(np.clip(random.normal(0.0, 1.0), -2.0, 2.0))
        volumes = {}
        for organ in AMOS:
            man, woman, spread = _VOLUMES_ML[organ.key]
            # Organs of one person share part of their deviation: large people have large organs.
            deviation = 0.5 * size + 0.87 * float(np.clip(random.normal(), -2.0, 2.0))
            volume = (man if male else woman) * float(np.exp(spread * deviation - spread**2 / 2))
            low, high = organ.volume_ml
            volumes[organ.key] = float(np.clip(volume, low * (1 + _RANGE_MARGIN), high * (1 - _RANGE_MARGIN)))
        return cls(
            seed=seed,
            sex="male" if male else "female",
            stature=(float(width), float(depth), float(np.clip(height, 0.86, 1.08))),
            subcutaneous_fat_mm=float(subcutaneous),
            visceral_fat_mm=float(visceral),
            stomach_gas=float(random.uniform(0.05, 0.45)),
            oral_contrast=bool(random.random() < 0.2),
            volumes_ml=volumes,
        )

    def to_json(self) -> dict[str, object]:
        """The person as plain values, for person.json."""
        return {"synthetic": True, **asdict(self)}


_STREAMS = ("person", "anatomy", "warp", "texture", "contrast", "noise", "bowel")


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of this person for one purpose, independent of those for the others."""
    return np.random.default_rng([seed, _STREAMS.index(purpose)])


def jitter(random: np.random.Generator, *spread: float) -> NDArray[np.float64]:
    """A bounded normal deviation with these standard deviations (mm, degrees, ...)."""
    return np.clip(random.normal(size=len(spread)), -2.0, 2.0) * np.array(spread)
