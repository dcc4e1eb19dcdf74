"""Colors with a fixed meaning: the scale of maps from 0 to 1, and the three experts. RGB, 0 to 255."""

from __future__ import annotations

import numpy as np

# Support points of matplotlib's perceptual color maps (CC0). Written out because matplotlib is absent inside Slicer,
# and Slicer's own color files are absent outside of it.
VIRIDIS = (
    (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
    (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75),
    (173, 220, 48), (216, 226, 25), (253, 231, 37),
)  # fmt: skip
INFERNO = (
    (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106), (163, 44, 97),
    (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29), (249, 142, 9), (252, 172, 17), (249, 203, 53),
    (242, 234, 105), (252, 255, 164),
)  # fmt: skip
CIVIDIS = (
    (0, 34, 78), (0, 46, 106), (26, 56, 111), (50, 67, 109), (67, 78, 108), (83, 90, 109), (97, 101, 111),
    (111, 112, 115), (125, 124, 120), (140, 136, 120), (155, 148, 118), (171, 160, 114), (188, 174, 108),
    (205, 187, 99), (222, 201, 88), (240, 216, 70), (254, 232, 56),
)  # fmt: skip
COLOR_MAPS = {"Viridis": VIRIDIS, "Cividis": CIVIDIS, "Inferno": INFERNO}

# Value in deciding-expert label maps, name, color: blue, yellow and vermillion of Okabe and Ito, which differ in
# brightness too and stay apart in every kind of color blindness.
EXPERTS = (
    (1, "head", (0, 114, 178)),
    (2, "medium", (240, 228, 66)),
    (3, "tail", (213, 94, 0)),
)


def color_table(name: str, size: int = 256) -> np.ndarray:
    """The color map ``name`` (a key of ``COLOR_MAPS``) as (size, 3) float values, 0 to 255."""
    support = np.array(COLOR_MAPS[name], dtype=float)
    at = np.linspace(0.0, len(support) - 1.0, size)
    return np.stack([np.interp(at, np.arange(len(support)), support[:, channel]) for channel in range(3)], axis=1)
