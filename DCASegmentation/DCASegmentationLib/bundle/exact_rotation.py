"""The one step of the MONAI configuration that is not MONAI's."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch


class Placed(Protocol):
    """An array with a place in space, as MONAI's ``MetaTensor`` is one; ``affine`` is (4, 4), index to mm."""

    affine: torch.Tensor


PlacedImage = TypeVar("PlacedImage", bound=Placed)


def with_exact_rotation(image: PlacedImage) -> PlacedImage:
    """``image`` with the axes of its affine made perpendicular in double precision; spacing and origin stay.

    NIfTI stores the affine in single precision, so the axes of an oblique CT are perpendicular to seven digits only.
    MONAI's ``Spacing`` aligns the first voxels of both grids, as this program does, if they are perpendicular to eight;
    else it aligns the centers, and the network sees voxels up to half a voxel apart from ours.
    """
    affine = image.affine.to(torch.float64)
    columns = affine[:3, :3]
    spacing = columns.norm(dim=0)
    # The rotation (or reflection) nearest to the axes.
    left, _, right = torch.linalg.svd(columns / spacing)
    exact = affine.clone()
    exact[:3, :3] = (left @ right) * spacing
    image.affine = exact
    return image
