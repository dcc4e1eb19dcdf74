"""CT numbers of tissues by contrast phase.

Portal-venous values are those of the project's table of priors (measured in reference CTs or published); the other
phases keep the usual order of enhancement (arterial: arteries, renal cortex, spleen; delayed: washout, urine).
"""

from __future__ import annotations

from dataclasses import dataclass

from .person import Person, jitter, stream

PHASES = ("none", "arterial", "portal_venous", "delayed")

# HU by phase (in the order of PHASES), spread between persons as a share of the enhancement plus 3 HU.
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
    """The CT numbers of one person in one phase, by tissue, in HU."""

    phase: str
    hu: dict[str, float]

    @classmethod
    def of(cls, person: Person, phase: str) -> Contrast:
        """Draw this person's CT numbers; they differ between persons by some 8 % of the enhancement.

        Raises ValueError for an unknown phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}, not {phase!r}")
        column = PHASES.index(phase)
        random = stream(person.seed, "contrast")
        # All enhancement of a person depends on the same dose, weight and circulation.
        common = 1.0 + float(jitter(random, 0.07)[0])
        values = {}
        for tissue, row in _HU.items():
            base, own = row[0], jitter(random, 0.05, 4.0)
            fixed = tissue in ("air", "gas", "fat", "table")
            enhancement = (row[column] - base) * common * (1.0 + own[0])
            values[tissue] = base + enhancement + (0.0 if fixed else own[1])
        return cls(phase, values)
