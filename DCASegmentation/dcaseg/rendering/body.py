"""The body in a CT, without air and table. Maps of the network are shown only there: in air they mean nothing."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

AIR_HU = -300
COARSE_MM = 4.0
_PLANES_PER_STEP = 32


def downsample(image: sitk.Image) -> sitk.Image:
    """Every n-th voxel, about 4 mm apart: enough to find positions, and fast on a large CT."""
    factors = [max(1, int(COARSE_MM / spacing)) for spacing in image.GetSpacing()]
    return image[:: factors[0], :: factors[1], :: factors[2]]


def compute_body_mask(ct: sitk.Image) -> sitk.Image:
    """The body (uint8, 1 inside) on every n-th voxel of ``ct``, about 4 mm apart; see ``compute_body_in_steps``."""
    coarse = downsample(ct)
    steps = compute_body_in_steps(sitk.GetArrayViewFromImage(coarse) > AIR_HU)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            mask = sitk.GetImageFromArray(end.value.astype(np.uint8))
            mask.CopyInformation(coarse)
            return mask


def compute_body_in_steps(tissue: Mask) -> Generator[None, None, Mask]:
    """Compute the body from ``tissue`` (z, y, x), voxels about 4 mm apart that are not air, and return it.

    It is the largest component, without the table and the skin and including the gas inside it. Each step is short, so
    that a window can process its events between them.
    """
    # Opening separates the body from the table.
    opened = ~erode(~erode(tissue))
    yield
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(opened.astype(np.uint8))))
    sizes = np.bincount(parts.ravel())
    sizes[:1] = 0
    body = parts == sizes.argmax() if sizes.any() else np.zeros(parts.shape, bool)
    yield
    # Closing fills the gaps of the skin.
    body = erode(erode(~erode(erode(~body))))
    yield
    filled = body.astype(np.uint8)
    for first in range(0, len(filled), _PLANES_PER_STEP):
        for plane in filled[first : first + _PLANES_PER_STEP]:
            plane[...] = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(plane)))
        yield
    # The coarse voxels at the skin are half air.
    return erode(filled.astype(bool))


def erode(mask: Mask) -> Mask:
    """The voxels of ``mask`` whose 18 neighbors (all but the corners) are also in it; the outside counts as inside.

    The result equals that of ITK's ball of radius 1, in a twentieth of the time.
    """
    along = [_erode_along(mask, axis) for axis in range(3)]
    return _erode_along(along[0], 1) & _erode_along(along[1], 2) & _erode_along(along[2], 0)


def _erode_along(mask: Mask, axis: int) -> Mask:
    lines = np.moveaxis(mask, axis, 0)
    inner = lines.copy()
    inner[1:] &= lines[:-1]
    inner[:-1] &= lines[1:]
    return np.moveaxis(inner, 0, axis)
