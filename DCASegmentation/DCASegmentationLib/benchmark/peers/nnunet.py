"""nnU-Net v2 on one CT: its predictor with its own reading, preprocessing, sliding window and export.

Run: python -m DCASegmentationLib.benchmark.peers.nnunet CT OUT --model FOLDER [--windows K]

Everything is nnU-Net's default but two things, both in its favor: it does not mirror (which takes eight times as long)
and it works in a single process (its default of six takes more memory).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from ..windows import WindowCosts, Windows, add_arguments, copied_tensor


def predict(ct: Path, out: Path, model: Path, windows: int | None) -> WindowCosts:
    """Segment ``ct`` into ``out``."""
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    # Only the call is replaced: nnU-Net loads its weights into the network it has.
    counted = Windows(predictor.network.forward, windows, copied_tensor)
    predictor.network.forward = counted
    predictor.predict_from_files_sequential([[str(ct)]], [str(out).removesuffix(".nii.gz")])
    return counted.costs


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    told = parser.parse_args()
    costs = predict(told.ct, told.out, told.model, told.windows)
    if told.report:
        costs.write(told.report)


if __name__ == "__main__":
    main()
