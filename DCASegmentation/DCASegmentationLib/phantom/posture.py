"""From scanner to reference body: the person's size and a smooth bend of the whole body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from DCASegmentationLib.phantom.fields import Array, Point
from DCASegmentationLib.phantom.person import Person, jitter, stream

REFERENCE_TOP = 205.0
"""Height (reference mm) at which the scan starts: the bases of the lungs."""
REFERENCE_BOTTOM = -275.0
"""Height (reference mm) at which the scan ends: below the prostate."""


@dataclass(frozen=True)
class Posture:
    """Maps points of the scanner (mm; left, back, head) to the reference body.

    A point is divided by the person's ``stature`` and moved by a few smooth waves: ``waves`` (n, 3) in radians per mm,
    ``phases`` (n,), ``amplitudes`` (n, 3) in mm. No wave is steep enough to fold the body.
    """

    stature: tuple[float, float, float]
    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    amplitudes: NDArray[np.float64]

    @classmethod
    def of(cls, person: Person) -> Posture:
        """This person's posture."""
        random = stream(person.seed, "warp")
        count = 5
        length = random.uniform(220.0, 420.0, count)
        direction = random.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        amplitudes = np.stack([jitter(random, 2.2, 2.0, 2.6) for _ in range(count)])
        return cls(
            person.stature,
            2 * np.pi * direction / length[:, None],
            random.uniform(0, 2 * np.pi, count),
            amplitudes,
        )

    def to_reference(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Reference coordinates of scanner points."""
        u, v, w = x / self.stature[0], y / self.stature[1], z / self.stature[2]
        moved = [u.copy(), v.copy(), w.copy()]
        for wave, phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            swing = np.sin(wave[0] * u + wave[1] * v + wave[2] * w + phase)
            for axis in range(3):
                moved[axis] += amplitude[axis] * swing
        return moved[0], moved[1], moved[2]

    def volume_factor(self, point: Point) -> float:
        """Volume in the scanner per volume in the reference body, at a reference point."""
        scaled = np.array(point)
        jacobian = np.eye(3)
        for wave, phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            jacobian += np.cos(wave @ scaled + phase) * np.outer(amplitude, wave)
        return float(np.prod(self.stature) / np.linalg.det(jacobian))

    @staticmethod
    def scanned(z: Array) -> NDArray[np.bool_]:
        """Which heights (reference mm) the scan covers."""
        return (z < REFERENCE_TOP) & (z > REFERENCE_BOTTOM)
