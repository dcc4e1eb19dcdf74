"""Planes of the whole model grid out of planes of the region that was computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .body import Region

FloatArray = NDArray[np.float32]


class Canvas:
    """Puts planes (channel, height, width) of ``region`` into planes of the whole grid, (height, width) of ``size``.

    Where nothing was computed all channels are 0, but for the first one, the background's, where ``certain`` says so:
    then it is 1. A plane is good until the next but one is asked for: two take turns.
    """

    def __init__(self, region: Region, size: tuple[int, int], certain: bool) -> None:
        self._area = (slice(None), *region[1:])
        self._size = size
        self._is_whole = all(
            side.start == 0 and side.stop == length for side, length in zip(region[1:], size, strict=True)
        )
        self._outside = 1.0 if certain else 0.0
        self._planes: list[FloatArray] = []

    def put(self, values: FloatArray, covered: NDArray[np.bool_] | None) -> FloatArray:
        """The whole plane; ``covered`` (height, width) tells which voxels of the region were computed, None for all."""
        if self._is_whole and covered is None:
            return values
        if not self._planes:
            self._planes = [self.blank(len(values)), self.blank(len(values))]
        self._planes.reverse()
        plane = self._planes[0]
        part = plane[self._area]
        part[:] = values
        if covered is not None:
            part[:, ~covered] = 0
            part[0, ~covered] = self._outside
        return plane

    def blank(self, channels: int) -> FloatArray:
        """A plane in which nothing was computed."""
        plane = np.zeros((channels, *self._size), np.float32)
        plane[0] = self._outside
        return plane
