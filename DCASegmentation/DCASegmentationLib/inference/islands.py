"""Pieces of an organ far too small to be it, taken out of a label map.

Every organ of the vocabularies is one piece of the body. A network that looks at one window at a time knows nothing
of that, and now and then finds a few voxels of an organ elsewhere. The paper's family leaves them.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

SMALL_SHARE = 0.1
"""Share of an organ's largest piece below which another piece is an island: organs that the network found in two
halves stay whole."""


def remove_islands(labels: NDArray[np.uint8], share: float = SMALL_SHARE) -> dict[int, int]:
    """Set the islands in ``labels`` (z, y, x) to background, in place; gives voxels removed by label.

    An island is a piece of a label, connected over corners too, with less than ``share`` of the voxels of the label's
    largest piece.
    """
    removed = {}
    for label, box in _boxes(labels).items():
        part = labels[box]
        mask = part == label
        pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.view(np.uint8)), True)
        number = sitk.GetArrayViewFromImage(pieces)[mask]
        sizes = np.bincount(number)
        islands = (sizes < share * sizes.max())[number]
        if islands.any():
            part[mask] = np.where(islands, np.uint8(0), np.uint8(label))
            removed[int(label)] = int(islands.sum())
    return removed


def _boxes(labels: NDArray[np.uint8]) -> dict[int, tuple[slice, slice, slice]]:
    """The box around each label's voxels, the background left out.

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
