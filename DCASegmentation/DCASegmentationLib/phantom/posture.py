"""From scanner to reference body: the person's size and a smooth bend of the whole body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fields import Array
from .person import Person, jitter, stream

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
        # Long waves bend and shift whole organs, short ones make their surfaces uneven.
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
        """Reference coordinates of scanner points."""
        u, v, w = x / self.stature[0], y / self.stature[1], z / self.stature[2]
        du, dv, dw = self._shift(u, v, w)
        return u + du, v + dv, w + dw

    def volume_factor(self, x: Array, y: Array, z: Array) -> Array:
        """Volume in the scanner per volume in the reference body, at reference points."""
        u, v, w = x, y, z
        for _ in range(2):
            du, dv, dw = self._shift(u, v, w)
            u, v, w = x - du, y - dv, z - dw
        # The waves are shallow: the divergence of the shift is the change of volume to first order.
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
    def scanned(z: Array) -> NDArray[np.bool_]:
        """Which heights (reference mm) the scan covers."""
        return (z < REFERENCE_TOP) & (z > REFERENCE_BOTTOM)
