"""The inputs of the measurements: a phantom on the grid of a usual abdominal scan, and a model with random weights.

The CT has 512 x 512 voxels of 0.8 x 0.8 x 2.5 mm. The body fills 44 % of a slice and its bounding box 65 %. In two
clinical CTs with the whole width of the body, of the abdomen and of the chest, the body filled 48 and 38 %, and its box
67 and 60 %.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from ..imaging.readers import read_ct
from ..imaging.writers import write_image
from ..method.log_gap import partition
from ..method.network import DCANet
from ..method.variants import Norm
from ..models.bundle import Bundle, save_bundle
from ..models.metadata import METADATA, Metadata, TrainingData
from ..organs import AMOS
from ..synthesis.phantom.case import generate
from ..types import ProgressCallback

SPACING_MM = (0.8, 0.8, 2.5)
IN_PLANE = 512
SLICES = 150
_SEED = 20
_AIR_HU = -1024


def create_benchmark_ct(folder: Path, slices: int = SLICES, progress: ProgressCallback | None = None) -> Path:
    """The CT file with this number of slices in ``folder``, generated on first use (about 40 s of CPU time).

    A scan longer than the person is continued with its mirror image.
    """
    path = folder / f"ct_{IN_PLANE}x{IN_PLANE}x{slices}.nii.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(_crop_or_pad_slices(_create_whole_scan(folder, progress), slices), path)
    return path


def _create_whole_scan(folder: Path, progress: ProgressCallback | None) -> sitk.Image:
    path = folder / "ct_whole.nii.gz"
    if path.exists():
        return read_ct(path)
    scan = generate(_SEED, SPACING_MM, "LPS", progress=progress).ct
    voxels = sitk.GetArrayFromImage(scan)
    for axis in (1, 2):
        voxels = crop_or_pad(voxels, axis, IN_PLANE)
    image = _make_image(voxels)
    write_image(image, path)
    return image


def _crop_or_pad_slices(whole: sitk.Image, slices: int) -> sitk.Image:
    voxels = sitk.GetArrayFromImage(whole)
    if slices > len(voxels):
        voxels = np.pad(voxels, ((0, slices - len(voxels)), (0, 0), (0, 0)), mode="symmetric")
    return _make_image(crop_or_pad(voxels, 0, slices))


def crop_or_pad(voxels: NDArray[np.int16], axis: int, count: int) -> NDArray[np.int16]:
    """``voxels`` cropped or padded with air to ``count`` along ``axis``, equally on both sides."""
    missing = count - voxels.shape[axis]
    if missing > 0:
        padding = [(0, 0)] * voxels.ndim
        padding[axis] = (missing // 2, missing - missing // 2)
        return np.pad(voxels, padding, constant_values=_AIR_HU)
    first = -missing // 2
    return voxels.take(np.arange(first, first + count), axis=axis)


def _make_image(voxels: NDArray[np.int16]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing(SPACING_MM)
    return image


PATCH = (96, 96, 96)
_WEIGHT_SEED = 0


def create_random_bundle(
    folder: Path,
    spacing_mm: float,
    n_filters: int = 16,
    norm: Norm = "batch",
    patch: tuple[int, int, int] = PATCH,
) -> Bundle:
    """A bundle in ``folder`` with random weights for the 15 organs of AMOS on an isotropic grid, created on first use.

    The heads are balanced on noise, so that every channel is the highest somewhere. The steps back to the CT's grid
    then have as much work as with a trained model.
    """
    sides = "x".join(map(str, patch))
    path = folder / f"random_{n_filters}_filters_{norm}_{sides}_{spacing_mm:g}mm"
    if (path / METADATA).exists():
        return Bundle.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    groups = partition({organ.label: 4 ** (len(AMOS) - organ.label) for organ in AMOS}, "average")
    metadata = Metadata(
        name=path.name,
        description="Random weights for measuring time and memory.",
        vocabulary=AMOS,
        spacing=(spacing_mm, spacing_mm, spacing_mm),
        orientation="RAS",
        hu_window=(-125.0, 275.0),
        patch=patch,
        partition=groups,
        training_data=(TrainingData("No data", 0, 0, "CC0-1.0"),),
        limits=("Random weights: the results are meaningless.",),
    )
    return save_bundle(path, _create_network(groups.owners, n_filters, norm), metadata)


def _create_network(owners: list[list[int]] | tuple[tuple[int, ...], ...], n_filters: int, norm: Norm) -> DCANet:
    with torch.random.fork_rng():
        torch.manual_seed(_WEIGHT_SEED)
        network = DCANet(owners, n_filters=n_filters, norm=norm).eval()
        noise = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        parts = network.forward_all(noise, ())
        heads: list[Any] = [expert.head for expert in network.experts]
        if network.aggregation is not None:
            heads.append(network.aggregation.head)
        for head, logits in zip(heads, (*parts.experts, parts.aggregated), strict=True):
            head.bias -= logits.mean(dim=(0, 2, 3, 4))
    return network
