"""The bundle's inference configuration: the same steps as ``inference.segmenter``, made of MONAI's own parts.

Run with::

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE --image CT.nii.gz \
        --output_dir OUT
"""

from __future__ import annotations

from typing import Any

from .metadata import OLD_WEIGHTS, Metadata

_FILTER = "DCASegmentationLib.bundle.anti_aliasing"


def inference_config(metadata: Metadata) -> dict[str, Any]:
    """The content of ``configs/inference.json``.

    MONAI's arrays have the axes in the order of the axis codes. The network's are (z, y, x), so orientation and
    spacing stand here in reverse. Weights of ``torch.save`` are loaded by MONAI, those in safetensors, which it does
    not read, by this program, checks included.
    """
    low, high = metadata.hu_window
    pixdim = list(metadata.spacing[::-1])
    with_torch = metadata.weights.file == OLD_WEIGHTS
    loader = {
        "_target_": "CheckpointLoader",
        "_desc_": "weights only, checked and converted to the network's float32",
        "load_path": f"$@bundle_root + '/{OLD_WEIGHTS}'",
        "load_dict": {"model": "@network"},
        "map_location": "@device",
    }
    return {
        "imports": [
            "$import numpy",
            "$import torch",
            "$from DCASegmentationLib.bundle.exact_rotation import with_exact_rotation",
            *(["$import functools", f"$from {_FILTER} import filter_before_spacing"] if metadata.anti_aliasing else []),
            *([] if with_torch else ["$from DCASegmentationLib.bundle.weights import with_weights"]),
        ],
        "bundle_root": ".",
        "image": "ct.nii.gz",
        "images": ["@image"],
        "output_dir": "$@bundle_root + '/eval'",
        "overlap": metadata.overlap,
        "sw_batch_size": 1,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "DCASegmentationLib.method.network.DCANet", **metadata.network},
        "network": f"${'@network_def' if with_torch else 'with_weights(@network_def, @bundle_root)'}.to(@device)",
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
                # A scan shorter than the window goes on with its end slices; MONAI's inferer would add air.
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
        "handlers": [loader] if with_torch else [],
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


def _filter(pixdim: list[float]) -> list[dict[str, Any]]:
    """The step before ``Spacingd`` for a model whose CTs are filtered."""
    func = f"$functools.partial(filter_before_spacing, pixdim={pixdim})"
    return [{"_target_": "Lambdad", "keys": "image", "func": func, "track_meta": True}]
