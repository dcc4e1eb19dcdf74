"""Where the windows of a volume lie and how much each of their voxels counts.

Positions and weights are those of MONAI's ``sliding_window_inference``, so that a bundle gives the same result in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from torch import Tensor, from_numpy
from torch.nn import functional

from .options import Weighting

Triple = tuple[int, int, int]

SIGMA_SCALE = 0.125
LOWEST_WEIGHT = 1e-3


def window_positions(size: Sequence[int], patch: Sequence[int], overlap: float) -> list[Triple]:
    """First voxels (z, y, x) of the windows that cover a volume of ``size``, ordered by z, then y, then x.

    ``size`` and ``patch`` are (depth, height, width), no side of ``size`` below that of ``patch``; ``overlap`` is the
    share of a window's side that neighbours have in common. Raises ValueError for an overlap outside [0, 1) or a
    volume smaller than the patch.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}")
    starts = [_starts(length, side, overlap) for length, side in zip(size, patch, strict=True)]
    return [(z, y, x) for z, y, x in product(*starts)]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length < side:
        raise ValueError(f"a window of {side} voxels does not fit into {length}: pad the volume first")
    step = max(int(side * (1 - overlap)), 1)
    last = length - side
    # The last window ends with the volume, so it overlaps its neighbour by more than the others.
    return [*range(0, last, step), last]


def importance_map(patch: Sequence[int], weighting: Weighting) -> Tensor:
    """Weight of each voxel of a window, float32 (depth, height, width).

    ``gaussian``: a Gaussian about the middle with a standard deviation of an eighth of each side, no weight below
    0.001. ``constant``: ones, the paper's averaging. Raises ValueError for another weighting.
    """
    if weighting == "constant":
        return from_numpy(np.ones(tuple(patch), dtype=np.float32))
    if weighting != "gaussian":
        raise ValueError(f"weighting must be 'gaussian' or 'constant', not {weighting!r}")
    weights = np.ones((1, 1, 1), dtype=np.float32)
    for axis, side in enumerate(patch):
        distance = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        profile = np.exp(distance**2 / np.float32(-2 * (SIGMA_SCALE * side) ** 2))
        weights = weights * np.expand_dims(profile, axis=tuple(other for other in range(3) if other != axis))
    return from_numpy(np.maximum(weights, max(float(weights.min()), LOWEST_WEIGHT)).astype(np.float32))


class Padding(NamedTuple):
    """Voxels added before and after each side (z, y, x) of a volume that is smaller than the patch."""

    before: Triple
    after: Triple

    @classmethod
    def to_patch(cls, size: Sequence[int], patch: Sequence[int]) -> Padding:
        """The padding that brings ``size`` up to ``patch``: half before, half (and an odd voxel) after."""
        missing = [max(side - length, 0) for length, side in zip(size, patch, strict=True)]
        z, y, x = (gap // 2 for gap in missing)
        return cls((z, y, x), (missing[0] - z, missing[1] - y, missing[2] - x))

    def __bool__(self) -> bool:
        return any(self.before) or any(self.after)

    def apply(self, volume: Tensor) -> Tensor:
        """``volume`` (depth, height, width), its end slices repeated above and below, zeros (windowed air) around it.

        A body goes on beyond the slices of a short scan, and a network takes air there for the end of the body; on the
        sides of a narrow field of view there is none to repeat.
        """
        if not self:
            return volume
        (top, up, left), (bottom, down, right) = self.before, self.after
        longer = volume
        # Of a volume without slices there is nothing to repeat. Repeating takes a batch and a channel.
        if volume.numel():
            longer = functional.pad(volume[None, None], (0, 0, 0, 0, top, bottom), mode="replicate")[0, 0]
        return functional.pad(longer, (left, right, up, down), value=0.0)
