"""Outlines of the body: cavity wall, muscle, skin and diaphragm.

Coordinates (mm) are those of the reference body: x to the left, y to the back, z to the head. x = 0 is the midline,
y = 0 the front of the second lumbar vertebra, z = 0 the disc below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .person import Person
from .shapes import FAR, Array

_CENTER_Y = -15.0
_EXPONENT = 2.3
# Half widths, front and back of the cavity (inside the ribs and abdominal muscles, further down inside the pelvic
# bones) and of the muscle around it, at the heights _Z. fmt: off
_Z = (-330, -235, -205, -180, -150, -125, -92, -56, -19, 18, 54, 88, 148, 203, 330)
_CAVITY_HALF_WIDTH = (20, 37, 51, 60, 73, 88, 106, 122, 128, 130, 134, 136, 136, 132, 118)
_CAVITY_FRONT = (-30, -58, -66, -72, -77, -82, -87, -91, -94, -96, -98, -100, -101, -97, -80)
_CAVITY_BACK = (35, 54, 64, 71, 68, 54, 46, 49, 55, 59, 64, 70, 79, 82, 80)
_MUSCLE_HALF_WIDTH = (165, 172, 172, 170, 168, 164, 158, 151, 149, 150, 153, 155, 156, 152, 150)
_MUSCLE_FRONT = (-95, -92, -92, -92, -93, -95, -99, -103, -106, -108, -110, -113, -115, -113, -100)
_MUSCLE_BACK = (95, 112, 116, 115, 111, 104, 92, 86, 85, 86, 88, 92, 98, 101, 102)
# fmt: on


@dataclass(frozen=True)
class Body:
    """Outlines of one person in reference coordinates. Distances are in mm, negative inside."""

    person: Person

    def compute_cavity_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Distance (mm) to the inner wall of chest, abdomen and pelvis."""
        belly = self._compute_belly_offset(z)
        return _compute_outline_distance(
            x,
            y,
            _interpolate_at_z(z, _CAVITY_HALF_WIDTH) + 0.35 * belly,
            _interpolate_at_z(z, _CAVITY_FRONT) - belly,
            _interpolate_at_z(z, _CAVITY_BACK),
        )

    def compute_muscle_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Distance (mm) to the outer surface of the trunk muscles."""
        belly = self._compute_belly_offset(z)
        return _compute_outline_distance(
            x,
            y,
            _interpolate_at_z(z, _MUSCLE_HALF_WIDTH) + 0.35 * belly,
            _interpolate_at_z(z, _MUSCLE_FRONT) - belly,
            _interpolate_at_z(z, _MUSCLE_BACK),
        )

    def compute_skin_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Distance (mm) to the outer surface of the skin."""
        belly = self._compute_belly_offset(z)
        fat = self.person.subcutaneous_fat_mm * (0.55 + 0.45 * _compute_fat_bulge(z + 40.0))
        return _compute_outline_distance(
            x,
            y,
            _interpolate_at_z(z, _MUSCLE_HALF_WIDTH) + 0.35 * belly + 0.8 * fat,
            _interpolate_at_z(z, _MUSCLE_FRONT) - belly - fat,
            _interpolate_at_z(z, _MUSCLE_BACK) + 0.75 * fat,
        )

    def compute_diaphragm_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Distance (mm) to the diaphragm, positive above it."""
        height = self._compute_dome_height(x, y)
        slope_x = self._compute_dome_height(x + 1.0, y) - height
        slope_y = self._compute_dome_height(x, y + 1.0) - height
        return np.clip((z - height) / np.sqrt(1.0 + slope_x**2 + slope_y**2), -60.0, 60.0)

    def compute_rib_angle(self, x: Array, y: Array) -> Array:
        """Angle (radians) around the trunk from the spine (0) to the breastbone (pi), symmetric on both sides."""
        return np.arctan2(np.abs(x), (y - _CENTER_Y) * 1.35)

    def _compute_belly_offset(self, z: Array) -> Array:
        """Distance (mm) by which visceral fat pushes the wall out; negative for a thin person."""
        return (self.person.visceral_fat_mm - 9.0) * _compute_fat_bulge(z)

    @staticmethod
    def _compute_dome_height(x: Array, y: Array) -> Array:
        depth = np.where(y < _CENTER_Y, 86.0, 94.0)
        out = np.minimum(((np.abs(x) / 138.0) ** 2.3 + (np.abs(y - _CENTER_Y) / depth) ** 2.3) ** (1 / 2.3), 1.1)
        edge = 76.0 - 0.32 * y
        # The right dome is higher, and the heart depresses the middle.
        top = 171.0 - 7.0 * np.tanh((x - 10.0) / 35.0) - 9.0 * np.exp(-(((x - 20.0) / 32.0) ** 2))
        # Round at the top and steep at the wall, where the lung reaches far down.
        fall = 0.45 * out**2.5 + 0.55 * out**9
        return np.asarray(edge + (top - edge) * (1.0 - fall))


def _compute_fat_bulge(z: Array) -> Array:
    """The fraction of the visceral fat that shows at a height: 1 at the navel, 0 at the chest and the hips."""
    return np.exp(-(((z + 30.0) / 110.0) ** 2))


def _interpolate_at_z(z: Array, values: tuple[int, ...]) -> Array:
    return np.interp(z, _Z, values)


def _compute_outline_distance(x: Array, y: Array, half_width: Array, front: Array, back: Array) -> Array:
    depth = np.where(y < _CENTER_Y, _CENTER_Y - front, back - _CENTER_Y)
    u = np.abs(x) / half_width
    v = np.abs(y - _CENTER_Y) / depth
    radius = np.maximum((u**_EXPONENT + v**_EXPONENT) ** (1 / _EXPONENT), 0.05)
    gradient = radius ** (1 - _EXPONENT) * np.hypot(u ** (_EXPONENT - 1) / half_width, v ** (_EXPONENT - 1) / depth)
    return np.clip((radius - 1.0) / np.maximum(gradient, 1e-4), -2 * FAR, 4 * FAR)
