"""Pieces of an organ far too small to be it, taken out of a label map.

Every organ of the vocabularies is one piece of the body. A network that looks at one window at a time knows nothing
of that, and now and then finds a few voxels of an organ elsewhere. The paper's family leaves them.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .label_boxes import boxes_of

SMALL_SHARE = 0.1
"""Share of an organ's largest piece below which another piece is an island: organs that the network found in two
halves stay whole."""


def remove_islands(labels: NDArray[np.uint8], share: float = SMALL_SHARE) -> dict[int, int]:
    """Set the islands in ``labels`` (z, y, x) to background, in place; gives voxels removed by label.

    An island is a piece of a label, connected over corners too, with less than ``share`` of the voxels of the label's
    largest piece.
    """
    removed = {}
    for label, box in boxes_of(labels).items():
        part = labels[box]
        mask = part == label
        pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.view(np.uint8)), True)
        number = sitk.GetArrayViewFromImage(pieces)[mask]
        sizes = np.bincount(number)
        small = sizes < share * sizes.max()
        if small[1:].any():
            part[mask] = np.where(small, np.uint8(0), np.uint8(label))[number]
            removed[label] = int(sizes[small].sum())
    return removed
