"""A synthetic person: sex, size, organ volumes, posture and contrast.

Portal-venous CT numbers are from the project's table of priors (measured in reference CTs or published). The other
phases follow the usual order of enhancement (arterial: arteries, renal cortex, spleen; delayed: washout, urine).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ...organs import AMOS
from .shapes import Array

# Mean volumes in ml (male, female) and the SD of the log volume between people. Liver to stomach: Geraghty 2004 and
# ICRP 89; the others from the ranges in reference CTs. The esophagus counts only inside the scan.
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
"""Drawn volumes stay inside the usual adult range by this fraction of its ends."""


@dataclass(frozen=True)
class Person:
    """A synthetic person. These numbers determine the anatomy.

    ``stature`` holds the sizes along left-right, front-back and head-foot relative to the reference body (a man of
    1.76 m), ``volumes_ml`` the target volumes of the organs. Fat is given as thickness in mm.
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
        """Draw the person with this seed."""
        random = create_rng(seed, "person")
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
            # The organs of a person share part of their deviation, since large people have large organs.
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


def create_rng(seed: int, purpose: str) -> np.random.Generator:
    """The random generator of a person for one purpose, independent of those for other purposes."""
    return np.random.default_rng([seed, _STREAMS.index(purpose)])


def jitter(random: np.random.Generator, *spread: float) -> NDArray[np.float64]:
    """Normal deviations with the given SDs (mm, degrees, ...), limited to 2 SD."""
    return np.clip(random.normal(size=len(spread)), -2.0, 2.0) * np.array(spread)


REFERENCE_TOP = 205.0
"""Upper end of the scan (reference mm): the bases of the lungs."""
REFERENCE_BOTTOM = -275.0
"""Lower end of the scan (reference mm): below the prostate."""


@dataclass(frozen=True)
class BodyWarp:
    """Maps scanner points (mm; left, back, head) to the reference body.

    A point is divided by the person's ``stature`` and displaced by a few smooth waves: ``waves`` (n, 3) in radians per
    mm, ``phases`` (n,), ``amplitudes`` (n, 3) in mm. No wave is steep enough to fold the body.
    """

    stature: tuple[float, float, float]
    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    amplitudes: NDArray[np.float64]

    @classmethod
    def from_person(cls, person: Person) -> BodyWarp:
        """Draw the posture of ``person``."""
        random = create_rng(person.seed, "warp")
        # Long waves bend and shift whole organs; short waves make their surfaces uneven.
        length = np.concatenate([random.uniform(220.0, 420.0, 5), random.uniform(65.0, 120.0, 7)])
        direction = random.normal(size=(length.size, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        spread = [2.2] * 5 + [0.6] * 7
        amplitudes = np.stack([jitter(random, mm, mm, mm) for mm in spread])
        return cls(
            person.stature,
            2 * np.pi * direction / length[:, None],
            random.uniform(0, 2 * np.pi, length.size),
            amplitudes,
        )

    def to_reference(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Reference coordinates (mm) of scanner points (mm)."""
        u, v, w = x / self.stature[0], y / self.stature[1], z / self.stature[2]
        du, dv, dw = self._shift(u, v, w)
        return u + du, v + dv, w + dw

    def compute_volume_factor(self, x: Array, y: Array, z: Array) -> Array:
        """Ratio of volume in the scanner to volume in the reference body, at reference points (mm)."""
        u, v, w = x, y, z
        for _ in range(2):
            du, dv, dw = self._shift(u, v, w)
            u, v, w = x - du, y - dv, z - dw
        # The waves are shallow, so the divergence of the shift is the change of volume to first order.
        divergence = np.zeros(np.broadcast_shapes(u.shape, v.shape, w.shape))
        for wave, phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            divergence += float(wave @ amplitude) * np.cos(wave[0] * u + wave[1] * v + wave[2] * w + phase)
        return np.prod(self.stature) / (1.0 + divergence)

    def _shift(self, u: Array, v: Array, w: Array) -> tuple[Array, Array, Array]:
        shift = [np.zeros(np.broadcast_shapes(u.shape, v.shape, w.shape)) for _ in range(3)]
        for wave, phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            swing = np.sin(wave[0] * u + wave[1] * v + wave[2] * w + phase)
            for total, mm in zip(shift, amplitude, strict=True):
                total += mm * swing
        return shift[0], shift[1], shift[2]

    @staticmethod
    def is_scanned(z: Array) -> NDArray[np.bool_]:
        """Whether the scan covers the heights ``z`` (reference mm)."""
        return (z < REFERENCE_TOP) & (z > REFERENCE_BOTTOM)


PHASES = ("none", "arterial", "portal_venous", "delayed")

# Mean HU in each phase (in the order of PHASES).
_HU: dict[str, tuple[float, float, float, float]] = {
    "air": (-1000, -1000, -1000, -1000),
    "gas": (-960, -960, -960, -960),
    "lung": (-850, -840, -840, -845),
    "fat": (-105, -105, -104, -104),
    "skin": (20, 25, 35, 35),
    "muscle": (52, 56, 60, 60),
    "cancellous_bone": (170, 175, 180, 180),
    "cortical_bone": (560, 560, 560, 560),
    "disc": (80, 80, 85, 85),
    "cartilage": (95, 95, 95, 95),
    "spinal_canal": (25, 28, 30, 30),
    "heart_muscle": (42, 105, 110, 95),
    "blood": (42, 260, 150, 118),
    "arterial_blood": (42, 320, 155, 120),
    "caval_blood": (42, 75, 130, 116),
    "portal_blood": (42, 110, 165, 122),
    "liver": (58, 68, 115, 98),
    "spleen": (46, 125, 125, 98),
    "renal_cortex": (36, 185, 190, 150),
    "renal_medulla": (32, 62, 165, 155),
    "renal_pelvis": (5, 5, 15, 320),
    "pancreas": (42, 105, 95, 76),
    "adrenal": (32, 72, 82, 62),
    "bile": (10, 10, 10, 10),
    "gallbladder_wall": (35, 45, 60, 60),
    "gastric_wall": (40, 82, 80, 72),
    "gastric_content": (28, 28, 28, 28),
    "esophageal_wall": (38, 50, 52, 50),
    "bowel_wall": (40, 82, 82, 74),
    "bowel_fluid": (15, 15, 18, 18),
    "oral_contrast": (210, 210, 210, 210),
    "feces": (10, 10, 10, 10),
    "urine": (8, 8, 10, 45),
    "bladder_wall": (35, 45, 55, 55),
    "prostate": (40, 65, 90, 88),
    "uterus": (45, 75, 100, 102),
    "table": (-350, -350, -350, -350),
}


@dataclass(frozen=True)
class Contrast:
    """The CT numbers (HU) of a person in one phase, by tissue."""

    phase: str
    hu: dict[str, float]

    @classmethod
    def from_person(cls, person: Person, phase: str) -> Contrast:
        """Draw the person's CT numbers, which vary between people by about 8 % of the enhancement.

        Raises ValueError for an unknown phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}, not {phase!r}")
        column = PHASES.index(phase)
        random = create_rng(person.seed, "contrast")
        # The enhancement of all tissues depends on the same dose, weight and circulation.
        common = 1.0 + float(jitter(random, 0.07)[0])
        values = {}
        for tissue, row in _HU.items():
            base, own = row[0], jitter(random, 0.05, 4.0)
            fixed = tissue in ("air", "gas", "fat", "table")
            enhancement = (row[column] - base) * common * (1.0 + own[0])
            values[tissue] = base + enhancement + (0.0 if fixed else own[1])
        return cls(phase, values)
