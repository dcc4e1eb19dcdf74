"""The anti-aliasing filter as a step of the MONAI configuration: MONAI's ``Spacing`` interpolates without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch.nn import functional

from ..imaging.resampling import anti_aliasing_kernel, anti_aliasing_sigma

ImageT = TypeVar("ImageT", bound=torch.Tensor)


def filter_before_spacing(image: ImageT, pixdim: Sequence[float]) -> ImageT:
    """``image`` filtered along each axis that ``Spacing`` to ``pixdim`` (mm, in the image's axis order) makes coarser.

    ``image`` is a MONAI ``MetaTensor`` (channel, then three axes). Followed by ``Spacing`` with bilinear interpolation
    it has the voxels of ``imaging.resampling.resample`` with ``anti_aliasing``.
    """
    affine: torch.Tensor = image.affine  # type: ignore[attr-defined]
    spacings = affine[:3, :3].to(torch.float64).norm(dim=0).tolist()
    filtered = torch.as_tensor(image).as_subclass(torch.Tensor).float()[:, None]
    for axis, (spacing, target) in enumerate(zip(spacings, pixdim, strict=True)):
        sigma = anti_aliasing_sigma(spacing, target)
        if sigma == 0:
            continue
        kernel = torch.tensor(anti_aliasing_kernel(sigma), dtype=torch.float32)
        reach = len(kernel) // 2
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = reach
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        filtered = functional.conv3d(functional.pad(filtered, padding, mode="replicate"), kernel.reshape(shape))
    result = image.clone()
    result.copy_(filtered[:, 0])
    return cast(ImageT, result)
