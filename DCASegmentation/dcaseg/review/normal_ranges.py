"""Usual positions of an adult's organs, to find organs in implausible positions; usual volumes are in ``organs``.

Volume ranges (``organs.Organ.volume_ml``) span the adult values of Geraghty et al., Abdom Imaging 2004;29:482-490
(149 CTs: liver, spleen, kidneys, pancreas, adrenal glands), ICRP Publication 89 (reference masses) and openly
licensed label maps (TotalSegmentator, AMOS: duodenum, bladder, vessels), widened for filling and body size.

Positions are centers of gravity in a common frame: the mean of two TotalSegmentator label maps of real people (dataset
v2, subject s0011, and the example of its repository; CC BY 4.0) and of 12 synthetic people. The real and the synthetic
positions agree within 21 mm, except along the vessels and the esophagus, whose visible part depends on the field of
view. Two people are not a population, so the tolerances are wide: only impossible positions are reported.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..organs import Organ

_NARROW = (45.0, 45.0, 60.0)
_LONG = (45.0, 50.0, 130.0)

# Center (x to the left, y to the back, z to the head) in mm relative to the midpoint between the kidneys, and the
# tolerance along each axis in mm.
_POSITIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "spleen": ((96, 4, 61), _NARROW),
    "right_kidney": ((-69, 3, -8), _NARROW),
    "left_kidney": ((66, 7, 8), _NARROW),
    "gallbladder": ((-65, -77, 16), (50, 55, 65)),
    "esophagus": ((8, -23, 174), _LONG),
    "liver": ((-63, -48, 66), (50, 50, 65)),
    "stomach": ((42, -64, 59), (60, 60, 70)),
    "aorta": ((9, -23, 75), _LONG),
    "inferior_vena_cava": ((-22, -30, 37), (35, 40, 100)),
    "pancreas": ((11, -49, 23), _NARROW),
    "right_adrenal_gland": ((-38, -2, 47), _NARROW),
    "left_adrenal_gland": ((35, -12, 51), _NARROW),
    "duodenum": ((-25, -49, -13), (50, 50, 65)),
    "bladder": ((-2, -37, -215), (50, 60, 90)),
    "prostate_uterus": ((2, -8, -244), (50, 65, 90)),
    "portal_and_splenic_vein": ((0, -48, 42), (55, 50, 65)),
}

TUBES = frozenset({"aorta", "inferior_vena_cava", "esophagus", "portal_and_splenic_vein"})
"""Organs with ends that are flat by definition, for instance where a vessel divides."""

_MIN_TRUSTED = 4
"""Number of organs of usual volume needed to determine the frame."""


def compute_expected_centers(
    centers: Mapping[str, NDArray[np.float64]], trusted: frozenset[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the expected center of gravity of each organ by key, in mm (LPS), from the positions of the other organs.

    ``centers`` are the organs' centers by key, mm (LPS). The frame is the median offset of the ``trusted`` organs, so
    that a few wrong ones do not shift it. The result is empty with fewer than four trusted organs.
    """
    offsets = {key: centers[key] - np.array(_POSITIONS[key][0]) for key in sorted(trusted) if key in _POSITIONS}
    if len(offsets) < _MIN_TRUSTED:
        return {}
    frame = np.median(np.array(list(offsets.values())), axis=0)
    return {key: np.array(position) + frame for key, (position, _) in _POSITIONS.items()}


def is_far(key: str, center: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    """Whether the center of organ ``key`` is farther from ``expected`` (both mm) than the tolerance."""
    return bool((np.abs(center - expected) > np.array(_POSITIONS[key][1])).any())


def compute_typical_volume(organ: Organ) -> float:
    """Return the geometric mean of an organ's usual range of volumes, in ml."""
    low, high = organ.volume_ml
    return float(np.sqrt(low * high))
