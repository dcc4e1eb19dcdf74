"""The box around the voxels of each label of a label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


def boxes_of(labels: NDArray[np.uint8]) -> dict[int, Box]:
    """The box (z, y, x) around each label in ``labels`` (z, y, x), the background left out, by label.

    Not by ITK's LabelShapeStatistics: it holds the runs of all labels at once, many times a noisy label map.
    """
    in_z, in_y, in_x = (np.zeros((256, length), dtype=np.bool_) for length in labels.shape)
    for z, plane in enumerate(labels):
        where = np.flatnonzero(plane != 0)
        found = plane.ravel()[where]
        y, x = np.divmod(where, plane.shape[1])
        in_z[found, z] = in_y[found, y] = in_x[found, x] = True
    boxes = {}
    for label in np.flatnonzero(in_z.any(axis=1)):
        held = [np.flatnonzero(each[label]) for each in (in_z, in_y, in_x)]
        depth, height, width = (slice(int(each[0]), int(each[-1]) + 1) for each in held)
        boxes[int(label)] = depth, height, width
    return boxes
