"""What a scanner makes of a body: slices, kernel, noise, its table, and the edge of its field of view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .volumes import Field, Spacing

_OUTSIDE = -1024.0


@dataclass(frozen=True)
class Scanner:
    """``slice_mm``: thickness and distance of the slices; ``noise_hu``: SD of the noise in a voxel; ``blur``: share of
    itself a voxel gives to its neighbors in the plane, negative for a kernel that sharpens; ``field_mm``: radius of
    the field of view, or None for all; ``table_mm``: distance of the table's top from the back, or None for no table;
    ``gain`` and ``shift``: how far HU are off."""

    slice_mm: float
    noise_hu: float
    blur: float
    field_mm: float | None
    table_mm: float | None
    gain: float
    shift: float

    @classmethod
    def draw(cls, random: np.random.Generator, width_mm: float) -> Scanner:
        slice_mm = float(random.choice([1.0, 1.5, 2.5, 3.0, 5.0, random.uniform(1.0, 5.0)]))
        noise = float(np.clip(random.gamma(3.0, 4.5), 3.0, 45.0))
        return cls(
            slice_mm=slice_mm,
            noise_hu=noise,
            blur=float(random.choice([0.0, random.uniform(-0.2, 0.35)])),
            field_mm=float(random.uniform(0.44, 0.62)) * width_mm if random.random() < 0.35 else None,
            table_mm=float(random.uniform(1.0, 22.0)) if random.random() < 0.7 else None,
            gain=float(random.normal(1.0, 0.02)),
            shift=float(random.normal(0.0, 4.0)),
        )

    def scan(self, hu: Field, spacing: Spacing, fine: int, random: np.random.Generator) -> Field:
        """The scan (z, y, x) of a body painted on ``fine`` levels to each of the result's."""
        hu = hu * np.float32(self.gain) + np.float32(self.shift)
        if self.table_mm is not None:
            _table(hu, spacing, self.table_mm, random)
        for axis in (1, 2):
            if self.blur:
                hu = _blurred(hu, axis, self.blur)
        depth = len(hu) // fine
        slices = self._slices(hu, spacing[2] / fine, random)
        result = _interpolated(slices, depth, spacing[2] / self.slice_mm)
        if self.field_mm is not None:
            y, x = (np.arange(n) * s for n, s in zip(result.shape[1:], spacing[1::-1], strict=True))
            middle = y.mean() + random.normal(0, 12), x.mean() + random.normal(0, 12)
            result[:, np.hypot(y[:, None] - middle[0], x[None] - middle[1]) > self.field_mm] = _OUTSIDE
        return result

    def _slices(self, hu: Field, step_mm: float, random: np.random.Generator) -> Field:
        """Slices ``slice_mm`` apart, each the mean over its thickness, with noise."""
        count = int(np.ceil(len(hu) * step_mm / self.slice_mm)) + 1
        edges = np.clip((np.arange(count + 1) - 0.5) * self.slice_mm / step_mm + 0.5, 0, len(hu) - 1e-3)
        slices = np.empty((count, *hu.shape[1:]), np.float32)
        for k in range(count):
            low, high = int(edges[k]), max(int(np.ceil(edges[k + 1])), int(edges[k]) + 1)
            slices[k] = hu[low:high].mean(axis=0)
        noise = random.standard_normal(slices.shape, dtype=np.float32)
        # Thick slices take the noise of several thin ones; sharper in plane than these voxels, it is white there.
        slices += noise * np.float32(self.noise_hu)
        return slices


def _interpolated(slices: Field, depth: int, ratio: float) -> Field:
    place = np.minimum(np.arange(depth) * ratio, len(slices) - 1.001)
    left = place.astype(int)
    t = (place - left).astype(np.float32)[:, None, None]
    return slices[left] * (1 - t) + slices[left + 1] * t


def _blurred(volume: Field, axis: int, share: float) -> Field:
    before, after = np.roll(volume, 1, axis), np.roll(volume, -1, axis)
    return np.float32(1 - share) * volume + np.float32(share / 2) * (before + after)


def _table(hu: Field, spacing: Spacing, gap_mm: float, random: np.random.Generator) -> None:
    """A curved board under the back; only air gives way to it."""
    body = hu[:: max(1, len(hu) // 12)] > -300
    rows = np.flatnonzero(body.any(axis=(0, 2)))
    if not len(rows):
        return
    y = np.arange(hu.shape[1])[:, None] * spacing[1]
    x = np.arange(hu.shape[2])[None] * spacing[0]
    radius = float(random.uniform(280.0, 900.0))
    back = rows[0] * spacing[1] - gap_mm
    distance = np.hypot(x - x.mean(), y - (back + radius)) - radius
    thickness = float(random.uniform(8.0, 30.0))
    top, inner = (distance > 0) & (distance < 2.5), (distance >= 2.5) & (distance < thickness)
    bottom = (distance >= thickness) & (distance < thickness + 2.5)
    filling = float(random.uniform(-990.0, -850.0))
    skin = float(random.uniform(-500.0, 150.0))
    for where, value in ((top, skin), (inner, filling), (bottom, skin)):
        patch = hu[:, where]
        hu[:, where] = np.where(patch < -850, value, patch)
