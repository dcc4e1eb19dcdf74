"""The outlines the organs lie in: cavity wall, muscle, skin, and the diaphragm.

Coordinates (mm) are those of the reference body: x to the left, y to the back, z to the head; x = 0 in the midline,
y = 0 at the front of the second lumbar vertebra, z = 0 at the disc below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from DCASegmentationLib.phantom.fields import FAR, Array
from DCASegmentationLib.phantom.person import Person

_CENTER_Y = -15.0
_EXPONENT = 2.3
# Heights, and there half widths and the front and back of the cavity (inside the ribs and abdominal muscles, then
# the pelvic bones) and of the muscle around it.
_Z = (-330.0, -235.0, -205.0, -180.0, -150.0, -125.0, -92.0, -56.0, -19.0, 18.0, 54.0, 88.0, 148.0, 203.0, 330.0)
_CAVITY_HALF_WIDTH = (20.0, 41.0, 56.0, 64.0, 74.0, 88.0, 106.0, 122.0, 128.0, 130.0, 134.0, 136.0, 136.0, 132.0, 118.0)
_CAVITY_FRONT = (-30.0, -58.0, -66.0, -72.0, -77.0, -82.0, -87.0, -91.0, -94.0, -96.0, -98.0, -100.0, -101.0, -97.0, -80.0)
_CAVITY_BACK = (35.0, 56.0, 68.0, 74.0, 68.0, 54.0, 46.0, 49.0, 55.0, 59.0, 64.0, 70.0, 79.0, 82.0, 80.0)
_MUSCLE_HALF_WIDTH = (165.0, 172.0, 172.0, 170.0, 168.0, 164.0, 158.0, 151.0, 149.0, 150.0, 153.0, 155.0, 156.0, 152.0, 150.0)
_MUSCLE_FRONT = (-95.0, -92.0, -92.0, -92.0, -93.0, -95.0, -99.0, -103.0, -106.0, -108.0, -110.0, -113.0, -115.0, -113.0, -100.0)
_MUSCLE_BACK = (95.0, 112.0, 116.0, 115.0, 111.0, 104.0, 92.0, 86.0, 85.0, 86.0, 88.0, 92.0, 98.0, 101.0, 102.0)


@dataclass(frozen=True)
class Body:
    """Outlines of one person in reference coordinates; distances in mm, negative inside."""

    person: Person

    def cavity(self, x: Array, y: Array, z: Array) -> Array:
        """Distance to the inner wall of chest, abdomen and pelvis."""
        belly = self._belly(z)
        return _outline(
            x, y, _at(z, _CAVITY_HALF_WIDTH) + 0.35 * belly, _at(z, _CAVITY_FRONT) - belly, _at(z, _CAVITY_BACK)
        )

    def muscle(self, x: Array, y: Array, z: Array) -> Array:
        """Distance to the outside of the trunk's muscles."""
        belly = self._belly(z)
        return _outline(
            x, y, _at(z, _MUSCLE_HALF_WIDTH) + 0.35 * belly, _at(z, _MUSCLE_FRONT) - belly, _at(z, _MUSCLE_BACK)
        )

    def skin(self, x: Array, y: Array, z: Array) -> Array:
        """Distance to the outside of the skin."""
        belly = self._belly(z)
        fat = self.person.subcutaneous_fat_mm * (0.55 + 0.45 * _bulge(z + 40.0))
        return _outline(
            x,
            y,
            _at(z, _MUSCLE_HALF_WIDTH) + 0.35 * belly + 0.8 * fat,
            _at(z, _MUSCLE_FRONT) - belly - fat,
            _at(z, _MUSCLE_BACK) + 0.75 * fat,
        )

    def diaphragm(self, x: Array, y: Array, z: Array) -> Array:
        """Distance to the diaphragm, positive above it."""
        height = self._dome(x, y)
        slope_x = self._dome(x + 1.0, y) - height
        slope_y = self._dome(x, y + 1.0) - height
        return np.clip((z - height) / np.sqrt(1.0 + slope_x**2 + slope_y**2), -60.0, 60.0)

    def rib_angle(self, x: Array, y: Array) -> Array:
        """Angle around the trunk from the spine (0) to the breastbone (pi), the same on both sides."""
        return np.arctan2(np.abs(x), (y - _CENTER_Y) * 1.35)

    def _belly(self, z: Array) -> Array:
        """How far (mm) visceral fat pushes the wall out; the belly of a thin person falls in."""
        return (self.person.visceral_fat_mm - 9.0) * _bulge(z)

    @staticmethod
    def _dome(x: Array, y: Array) -> Array:
        depth = np.where(y < _CENTER_Y, 86.0, 94.0)
        out = np.minimum(((np.abs(x) / 138.0) ** 2.3 + (np.abs(y - _CENTER_Y) / depth) ** 2.3) ** (1 / 2.3), 1.1)
        edge = 76.0 - 0.32 * y
        # The right dome stands higher; the heart presses the middle down.
        top = 171.0 - 7.0 * np.tanh((x - 10.0) / 35.0) - 9.0 * np.exp(-(((x - 20.0) / 32.0) ** 2))
        return edge + (top - edge) * (1.0 - out**7)


def _bulge(z: Array) -> Array:
    """How much of the belly's fat shows at a height: all of it at the navel, none at the chest and the hips."""
    return np.exp(-(((z + 30.0) / 110.0) ** 2))


def _at(z: Array, values: tuple[float, ...]) -> Array:
    return np.interp(z, _Z, values)


def _outline(x: Array, y: Array, half_width: Array, front: Array, back: Array) -> Array:
    depth = np.where(y < _CENTER_Y, _CENTER_Y - front, back - _CENTER_Y)
    u = np.abs(x) / half_width
    v = np.abs(y - _CENTER_Y) / depth
    radius = np.maximum((u**_EXPONENT + v**_EXPONENT) ** (1 / _EXPONENT), 0.05)
    gradient = radius ** (1 - _EXPONENT) * np.hypot(
        u ** (_EXPONENT - 1) / half_width, v ** (_EXPONENT - 1) / depth
    )
    return np.clip((radius - 1.0) / np.maximum(gradient, 1e-4), -2 * FAR, 4 * FAR)
