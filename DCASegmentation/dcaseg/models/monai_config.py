r"""The bundle's inference configuration: the steps of our segmenter, built from MONAI's components.

Run with::

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE --image CT.nii.gz \
        --output_dir OUT
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch.nn import functional

from ..imaging.resampling import anti_aliasing_kernel, anti_aliasing_sigma
from ..method.ensemble import get_network_class
from .metadata import Metadata

SW_BATCH_SIZE = 2
"""Windows that MONAI runs together. On a CPU, PyTorch takes half the time for a window of a batch of two, because it
unfolds the volumes of a batch of one."""


class Placed(Protocol):
    """An array with a position in space, such as MONAI's ``MetaTensor``; ``affine`` is (4, 4), index to mm."""

    affine: torch.Tensor


PlacedImage = TypeVar("PlacedImage", bound=Placed)


def with_exact_rotation(image: PlacedImage) -> PlacedImage:
    """``image`` with the axes of its affine made exactly perpendicular; spacing and origin stay.

    NIfTI stores the affine in single precision, so the axes of an oblique CT are perpendicular to only seven digits.
    If they are perpendicular to eight, MONAI's ``Spacing`` aligns the first voxels of both grids, as this program does.
    Otherwise it aligns the centers, and the network's voxels would be up to half a voxel away from ours.
    """
    affine = image.affine.to(torch.float64)
    columns = affine[:3, :3]
    spacing = columns.norm(dim=0)
    # The rotation (or reflection) closest to the axes.
    left, _, right = torch.linalg.svd(columns / spacing)
    exact = affine.clone()
    exact[:3, :3] = (left @ right) * spacing
    image.affine = exact
    return image


ImageT = TypeVar("ImageT", bound=torch.Tensor)


def filter_before_spacing(image: ImageT, pixdim: Sequence[float]) -> ImageT:
    """``image`` filtered along each axis that ``Spacing`` to ``pixdim`` (mm, in the image's axis order) makes coarser.

    ``image`` is a MONAI ``MetaTensor`` (channel, then three axes). After ``Spacing`` with bilinear interpolation, its
    voxels equal those of ``imaging.resampling.resample`` with ``anti_aliasing``.
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


_FILTER = "dcaseg.models.monai_config"


def make_inference_config(metadata: Metadata) -> dict[str, Any]:
    """The content of ``configs/inference.json``.

    The axes of MONAI's arrays are in the order of the axis codes, and those of the network are (z, y, x), so
    orientation and spacing are reversed here. This program loads and checks the weights, as MONAI cannot read
    safetensors.
    """
    low, high = metadata.hu_window
    pixdim = list(metadata.spacing[::-1])
    return {
        "imports": [
            "$import numpy",
            "$import torch",
            "$from dcaseg.models.monai_config import with_exact_rotation",
            *(["$import functools", f"$from {_FILTER} import filter_before_spacing"] if metadata.anti_aliasing else []),
            "$from dcaseg.models.weights import with_weights",
        ],
        "bundle_root": ".",
        "image": "ct.nii.gz",
        "images": ["@image"],
        "output_dir": "$@bundle_root + '/eval'",
        "overlap": metadata.overlap,
        "sw_batch_size": SW_BATCH_SIZE,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": _get_network_target(metadata), **metadata.network},
        "network": "$with_weights(@network_def, @bundle_root).to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Lambdad", "keys": "image", "func": "$with_exact_rotation"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": metadata.orientation[::-1], "labels": None},
                *(_filter(pixdim) if metadata.anti_aliasing else []),
                {"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": low,
                    "a_max": high,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                # A scan shorter than the window is padded with its end slices; MONAI's inferer would pad it with air.
                {
                    "_target_": "SpatialPadd",
                    "keys": "image",
                    "spatial_size": [metadata.patch[0], -1, -1],
                    "mode": "edge",
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(metadata.patch),
            "sw_batch_size": "@sw_batch_size",
            "overlap": "@overlap",
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "labels",
                    "output_dtype": "$numpy.uint8",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "handlers": [],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _get_network_target(metadata: Metadata) -> str:
    network = get_network_class(metadata.network)
    return f"{network.__module__}.{network.__qualname__}"


def _filter(pixdim: list[float]) -> list[dict[str, Any]]:
    """The step before ``Spacingd`` for a model with anti-aliasing."""
    func = f"$functools.partial(filter_before_spacing, pixdim={pixdim})"
    return [{"_target_": "Lambdad", "keys": "image", "func": func, "track_meta": True}]
