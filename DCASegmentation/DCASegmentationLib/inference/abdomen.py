"""Which planes of a long scan hold the abdomen, told by a coarse segmentation of all of it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..imaging.grid import Grid
from ..organs import Vocabulary

MARGIN_MM = 60.0
"""What is added above and below: more than a coarse pass cuts off an organ's end, and the length of a gallbladder that
it may have missed."""

_LEAST_SHARE = 0.25
"""Of the smallest ordinary volume of an organ: what is smaller is taken for a mistake."""


def abdominal_planes(
    labels: sitk.Image, vocabulary: Vocabulary, grid: Grid, margin_mm: float = MARGIN_MM
) -> slice | None:
    """The planes of ``grid`` (along its last index axis, z) that hold the organs of ``labels``, an image of any grid,
    and ``margin_mm`` more on both sides; None where there is no organ of some size."""
    found = sitk.LabelShapeStatisticsImageFilter()
    found.SetComputePerimeter(False)
    found.Execute(labels)
    along = []
    for label in found.GetLabels():
        if found.GetPhysicalSize(label) < 1000 * _LEAST_SHARE * vocabulary.by_label[label].volume_ml[0]:
            continue
        first = np.array(found.GetBoundingBox(label)[:3])
        box = np.stack([first, first + found.GetBoundingBox(label)[3:] - 1])
        for sides in np.ndindex(2, 2, 2):
            corner = labels.TransformIndexToPhysicalPoint([int(box[side, axis]) for axis, side in enumerate(sides)])
            along.append(float((np.array(corner) - grid.origin) @ grid.axes[:, 2]))
    if not along:
        return None
    start = np.floor((min(along) - margin_mm) / grid.spacing[2])
    stop = np.ceil((max(along) + margin_mm) / grid.spacing[2]) + 1
    return slice(int(max(start, 0)), int(min(stop, grid.size[2])))


def at_least(planes: slice, depth: int, available: int) -> slice:
    """``planes`` with as many more on both sides as make up ``depth``, within the ``available`` ones."""
    missing = max(min(depth, available) - (planes.stop - planes.start), 0)
    start = max(min(planes.start - missing // 2, available - (planes.stop - planes.start) - missing), 0)
    return slice(start, min(start + (planes.stop - planes.start) + missing, available))
