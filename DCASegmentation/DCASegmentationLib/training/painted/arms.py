"""Arms beside the trunk, of patients who cannot lift them."""

from __future__ import annotations

import numpy as np

from .appearance import Appearance
from .tissues import INDEX
from .volumes import Field, Spacing


def add_arms(hu: Field, spacing: Spacing, appearance: Appearance, random: np.random.Generator) -> None:
    """Paints an arm into the air on each side of a body (z, y, x), with fat, muscle and one or two bones."""
    body = hu > -300
    columns = np.flatnonzero(body.any(axis=(0, 1)))
    rows = np.flatnonzero(body.any(axis=(0, 2)))
    if not len(columns):
        return
    z = np.arange(hu.shape[0])[:, None, None] * spacing[2]
    y = np.arange(hu.shape[1])[None, :, None] * spacing[1]
    x = np.arange(hu.shape[2])[None, None] * spacing[0]
    fat, muscle = appearance.hu[INDEX["visceral_fat"]], appearance.hu[INDEX["psoas"]]
    bone, marrow = appearance.hu[INDEX["cortical_bone"]], appearance.hu[INDEX["cancellous_bone"]]
    thickness = float(random.uniform(0.8, 1.25))
    for edge, side in ((columns[0] * spacing[0], -1.0), (columns[-1] * spacing[0], 1.0)):
        lean, drop = random.normal(0.0, 0.06, 2)
        center_x = edge + side * random.uniform(40.0, 60.0) * thickness + lean * (z - z.mean())
        center_y = rows[0] * spacing[1] + random.uniform(0.3, 0.75) * np.ptp(rows) * spacing[1] + drop * (z - z.mean())
        radius = np.hypot((x - center_x) / thickness, (y - center_y) / (1.1 * thickness))
        two = random.random() < 0.5
        apart = 13.0 if two else 0.0
        near = np.minimum(
            np.hypot(x - center_x - apart, y - center_y), np.hypot(x - center_x + apart, y - center_y - apart / 3)
        )
        shaft = 7.0 if two else 10.0
        arm = np.select(
            [near < 0.55 * shaft, near < shaft, radius < 30.0, radius < 38.0], [marrow, bone, muscle, fat], -1e4
        )
        free = (arm > -5e3) & ~body
        hu[free] = arm[free]
