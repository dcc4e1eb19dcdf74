"""nnU-Net v2 on one CT, with its default 3D network and random weights.

Plans, network and resampling are the defaults of nnU-Net's planner for isotropic CT: PlainConvUNet with six stages and
32 to 320 features, patch 128, resampling of order 3 for images and 1 for predictions.

Run: python -m dcaseg.benchmark.peers.nnunet CT OUT --model FOLDER [--windows K]

All settings are nnU-Net's defaults with two exceptions, both in its favor: no mirroring unless ``--mirroring`` is given
(it takes eight times as long) and a single process (the default of six needs more memory).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from ...temp_paths import make_partial_path
from ..window_replay import WindowCosts, Windows, add_arguments, copy_windows

N_CLASSES = 16
PATCH = 128
_TRAINER = "nnUNetTrainer"
CONFIGURATION = "3d_fullres"
_FEATURES = (32, 64, 128, 256, 320, 320)
_MIN_VOXELS = 4
_IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin")


def create_nnunet_model(
    folder: Path, spacing_mm: float, patch: int = PATCH, features: tuple[int, ...] | None = None
) -> Path:
    """The folder of the model on an isotropic grid, inside ``folder``, created on first use.

    By default, it has six stages, or as many as leave at least four voxels of a side of the patch, as in nnU-Net.
    """
    features = features or _FEATURES[: min(len(_FEATURES), (patch // _MIN_VOXELS).bit_length())]
    path = folder / f"nnunet_{len(features)}_stages_of_{features[0]}_patch_{patch}_{spacing_mm:g}mm"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    temporary = make_partial_path(path)
    try:
        _write(temporary, spacing_mm, patch, features)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _write(folder: Path, spacing_mm: float, patch: int, features: tuple[int, ...]) -> None:
    weights = folder / "fold_0"
    weights.mkdir(parents=True)
    architecture = _make_architecture(features)
    (folder / "dataset.json").write_text(json.dumps(generate_dataset_json()), encoding="utf-8")
    written = make_plans((spacing_mm,) * 3, (patch,) * 3, features=features)
    (folder / "plans.json").write_text(json.dumps(written), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], list(_IMPORTED), 1, N_CLASSES,
            allow_init=True, deep_supervision=False,
        )  # fmt: skip
    torch.save(
        {
            "network_weights": network.state_dict(),
            "trainer_name": _TRAINER,
            "init_args": {"configuration": CONFIGURATION},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        weights / "checkpoint_final.pth",
    )


def _make_architecture(features: tuple[int, ...]) -> dict[str, Any]:
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": list(_IMPORTED),
    }


def generate_dataset_json() -> dict[str, Any]:
    """nnU-Net's description of a dataset of CTs with ``N_CLASSES`` labels, including the background."""
    labels = {"background": 0, **{f"organ {label}": label for label in range(1, N_CLASSES)}}
    return {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def make_plans(
    spacing_mm: tuple[float, float, float],
    patch: tuple[int, int, int],
    batch: int = 2,
    features: tuple[int, ...] = _FEATURES,
) -> dict[str, Any]:
    """nnU-Net's plans of a model with this spacing and patch, both in the order of the array axes (z, y, x)."""
    architecture = _make_architecture(features)
    resampling: dict[str, Any] = {}
    for what, is_label_map, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = {
            **{"is_seg": is_label_map, "order": order, "order_z": 0, "force_separate_z": None}
        }
    spacing = list(spacing_mm)
    # Foreground intensities of abdominal CT, for normalization.
    intensities = {"mean": 80.0, "std": 140.0, "median": 90.0, "min": -1000.0, "max": 2000.0}
    return {
        "dataset_name": "Dataset000_random",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": [300, 300, 300],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [300.0] * 3,
                "spacing": spacing,
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                **resampling,
                "architecture": architecture,
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {**intensities, "percentile_00_5": -900.0, "percentile_99_5": 500.0}
        },
    }


def predict(ct: Path, out: Path, model: Path, windows: int | None, mirroring: bool = False) -> WindowCosts:
    """Segment ``ct`` with the model in the folder ``model``, and write the label map to ``out``.

    With ``mirroring``, each window counts eight times.
    """
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=mirroring,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    # Only ``forward`` is replaced, since nnU-Net loads its weights into the network object.
    counted = Windows(predictor.network.forward, windows, copy_windows)
    predictor.network.forward = counted
    predictor.predict_from_files_sequential([[str(ct)]], [str(out).removesuffix(".nii.gz")])
    return counted.costs


def main() -> None:
    """Segment a CT and write the times of its windows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--mirroring", action="store_true", help="average eight mirrored predictions")
    args = parser.parse_args()
    costs = predict(args.ct, args.out, args.model, args.windows, args.mirroring)
    if args.report:
        costs.write(args.report)


if __name__ == "__main__":
    main()
