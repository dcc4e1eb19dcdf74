"""Our network in the usual pipeline of MONAI bundles: Spacingd, sliding_window_inference, Invertd.

Run: python -m dcaseg.benchmark.peers.monai_reference CT OUT --model BUNDLE [--windows K]

The steps are those of a bundle's ``configs/inference.json``, with the windows counted.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.data import decollate_batch, list_data_collate
from monai.inferers import sliding_window_inference
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    LoadImaged,
    Orientationd,
    SaveImage,
    ScaleIntensityRanged,
    Spacingd,
)

from ...models.bundle import Bundle
from ...models.monai_config import SW_BATCH_SIZE, filter_before_spacing
from ..window_replay import WindowCosts, Windows, add_arguments, copy_windows


def segment(ct: Path, out: Path, model: Path, windows: int | None) -> WindowCosts:
    """Segment ``ct`` with the network and the grid of the bundle ``model``, and write the label map to ``out``."""
    bundle = Bundle.load(model)
    metadata = bundle.metadata
    network = bundle.network().eval()
    low, high = metadata.hu_window
    # MONAI's array axes are in the order of the letters, the network's are (z, y, x).
    pixdim = metadata.spacing[::-1]
    anti_aliasing = [Lambdad("image", partial(filter_before_spacing, pixdim=pixdim))] if metadata.anti_aliasing else []
    preprocessing = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes=metadata.orientation[::-1], labels=None),
            *anti_aliasing,
            Spacingd("image", pixdim=pixdim, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    postprocessing = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
        ]
    )
    counted = Windows(network, windows, copy_windows)
    batch = list_data_collate([preprocessing({"image": str(ct)})])
    with torch.inference_mode():
        batch["pred"] = sliding_window_inference(
            batch["image"], metadata.patch, sw_batch_size=SW_BATCH_SIZE, predictor=counted, overlap=0.5, mode="gaussian"
        )
        result = postprocessing(decollate_batch(batch)[0])
    name = str(out).removesuffix(".nii.gz")
    SaveImage(output_dtype=np.uint8, output_ext=".nii.gz", resample=False, print_log=False)(
        result["pred"], filename=name
    )
    return counted.costs


def main() -> None:
    """Segment a CT and write the times of its windows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()
    costs = segment(args.ct, args.out, args.model, args.windows)
    if args.report:
        costs.write(args.report)


if __name__ == "__main__":
    main()
