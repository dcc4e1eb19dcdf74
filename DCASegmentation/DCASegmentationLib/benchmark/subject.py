"""The CT that is measured on: a synthetic person on the grid of a usual abdominal scan.

512 x 512 voxels of 0.8 x 0.8 x 2.5 mm. The body fills 44 % of a slice and its box 65 %: in two clinical CTs that show
the body's whole width, of the abdomen and of the chest, it was 48 and 38 %, and 67 and 60 %.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.reading import read_ct
from ..imaging.writing import write_image
from ..phantom.case import generate

Progress = Callable[[float, str], None]

SPACING_MM = (0.8, 0.8, 2.5)
IN_PLANE = 512
SLICES = 150
_SEED = 20
_AIR_HU = -1024


def benchmark_ct(folder: Path, slices: int = SLICES, progress: Progress | None = None) -> Path:
    """The CT file with so many slices in ``folder``, made there on first use (some 40 s of CPU time).

    A scan longer than the person is continued by its mirror image.
    """
    path = folder / f"ct_{IN_PLANE}x{IN_PLANE}x{slices}.nii.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(_with_slices(_whole(folder, progress), slices), path)
    return path


def _whole(folder: Path, progress: Progress | None) -> sitk.Image:
    path = folder / "ct_whole.nii.gz"
    if path.exists():
        return read_ct(path)
    scan = generate(_SEED, SPACING_MM, "LPS", progress=progress).ct
    voxels = sitk.GetArrayFromImage(scan)
    for axis in (1, 2):
        voxels = centered(voxels, axis, IN_PLANE)
    image = _image(voxels)
    write_image(image, path)
    return image


def _with_slices(whole: sitk.Image, slices: int) -> sitk.Image:
    voxels = sitk.GetArrayFromImage(whole)
    if slices > len(voxels):
        voxels = np.pad(voxels, ((0, slices - len(voxels)), (0, 0), (0, 0)), mode="symmetric")
    return _image(centered(voxels, 0, slices))


def centered(voxels: NDArray[np.int16], axis: int, count: int) -> NDArray[np.int16]:
    """``voxels`` with ``count`` of them along ``axis``: cut, or surrounded by air, evenly on both sides."""
    missing = count - voxels.shape[axis]
    if missing > 0:
        around = [(0, 0)] * voxels.ndim
        around[axis] = (missing // 2, missing - missing // 2)
        return np.pad(voxels, around, constant_values=_AIR_HU)
    first = -missing // 2
    return voxels.take(np.arange(first, first + count), axis=axis)


def _image(voxels: NDArray[np.int16]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing(SPACING_MM)
    return image
