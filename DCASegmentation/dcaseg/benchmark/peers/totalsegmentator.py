"""TotalSegmentator's pipeline and settings for one CT, with nnU-Net's default network.

Run: python -m dcaseg.benchmark.peers.totalsegmentator CT OUT --spacing 1.5 --model FOLDER [--windows K]

The whole CT is resampled (cubic splines) to the model's spacing, written, segmented by nnU-Net without mirroring, and
the label map (not its probabilities) is resampled to the CT's grid. The normal settings use 1.5 mm. This is ONE of the
five models that TotalSegmentator runs one after another with these settings. Its option --fast uses one model at 3 mm.
Its real models have more classes than the 16 of this one, and therefore cost more.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..window_replay import WindowCosts, add_arguments
from .nnunet import predict


def segment(ct: Path, out: Path, model: Path, spacing_mm: float, windows: int | None) -> WindowCosts:
    """Segment ``ct`` at ``spacing_mm`` with the nnU-Net in the folder ``model``, and write the label map to ``out``."""
    image: Any = nibabel.load(ct)
    # float64, nibabel's default, which TotalSegmentator uses.
    voxels = image.get_fdata()
    factors = np.array(image.header.get_zooms()[:3]) / spacing_mm
    affine = image.affine @ np.diag([*(1 / factors), 1.0])
    with tempfile.TemporaryDirectory() as folder:
        resampled, labels = Path(folder, "ct.nii.gz"), Path(folder, "labels.nii.gz")
        small = ndimage.zoom(voxels, factors, order=3).astype(np.int32)
        nibabel.save(nibabel.Nifti1Image(small, affine), resampled)
        del small
        costs = predict(resampled, labels, model, windows)
        label_image: Any = nibabel.load(labels)
        predicted = np.asarray(label_image.dataobj)
    shape = np.array(voxels.shape)
    on_ct: NDArray[np.uint8] = ndimage.zoom(predicted, shape / predicted.shape, order=0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(on_ct, image.affine), out)
    return costs


def main() -> None:
    """Segment a CT and write the times of its windows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()
    costs = segment(args.ct, args.out, args.model, args.spacing, args.windows)
    if args.report:
        costs.write(args.report)


if __name__ == "__main__":
    main()
