"""People unlike those of the training, to measure where the review leads.

Training draws noise of 6 to 22 HU, voxels of 1.5 to 2.5 mm in plane and slices of 2.5 to 5 mm, half of them in the
portal-venous phase, and nobody has lost an organ (``training``). Here noise is 25 to 45 HU, slices are thicker or
planes coarser than any of these, the portal-venous phase is missing, and most people have lost an organ or two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..phantom.case import Phantom, generate

TUNING_SEEDS = 500_000
"""Seeds on which the review's scoring was chosen; nothing is reported on them."""
REPORT_SEEDS = 600_000
"""Seeds on which it is reported; nothing was chosen on them."""

_PHASES = ("arterial", "none", "delayed")
_LOST = ("gallbladder", "spleen", "right_kidney", "left_kidney", "prostate_uterus")


@dataclass(frozen=True)
class OddScan:
    """How a person was scanned, arguments of ``phantom.case.generate``."""

    spacing: tuple[float, float, float]
    phase: str
    noise_hu: float
    missing: tuple[str, ...]


def draw_odd_scan(seed: int) -> OddScan:
    """The scan of the person of ``seed``."""
    generator = np.random.default_rng([seed, 7])
    if generator.random() < 0.5:
        in_plane, slices = generator.uniform(0.9, 1.4), generator.uniform(5.5, 8.0)
    else:
        in_plane, slices = generator.uniform(2.8, 3.6), generator.uniform(2.0, 3.5)
    lost = generator.choice(_LOST, size=int(generator.integers(0, 3)), replace=False)
    return OddScan(
        spacing=(round(float(in_plane), 2), round(float(in_plane), 2), round(float(slices), 2)),
        phase=str(generator.choice(_PHASES)),
        noise_hu=round(float(generator.uniform(25.0, 45.0)), 1),
        missing=tuple(sorted(str(key) for key in lost)),
    )


def odd_phantom(seed: int) -> Phantom:
    """The person of ``seed`` as ``draw_odd_scan`` scans it."""
    scan = draw_odd_scan(seed)
    return generate(seed, scan.spacing, phase=scan.phase, noise_hu=scan.noise_hu, missing=scan.missing)
