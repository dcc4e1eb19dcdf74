"""TotalSegmentator's way through one CT, with its settings, around nnU-Net's default network.

Run: python -m dcaseg.benchmark.peers.totalsegmentator CT OUT --spacing 1.5 --model FOLDER [--windows K]

The CT is resampled as a whole (cubic splines) to the model's spacing, written, segmented there by nnU-Net without
mirroring, and the label map (not its probabilities) is resampled to the CT's grid. 1.5 mm are the normal settings, of
which this is ONE model: TotalSegmentator runs five, one after another. 3 mm with one model is its option --fast. Its
models have more classes than the 16 of this one, which costs it more than this.
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
    """Segment ``ct`` into ``out``."""
    image: Any = nibabel.load(ct)
    # float64, as nibabel gives it and TotalSegmentator takes it.
    voxels = image.get_fdata()
    factors = np.array(image.header.get_zooms()[:3]) / spacing_mm
    affine = image.affine @ np.diag([*(1 / factors), 1.0])
    with tempfile.TemporaryDirectory() as folder:
        resampled, labels = Path(folder, "ct.nii.gz"), Path(folder, "labels.nii.gz")
        small = ndimage.zoom(voxels, factors, order=3).astype(np.int32)
        nibabel.save(nibabel.Nifti1Image(small, affine), resampled)
        del small
        costs = predict(resampled, labels, model, windows)
        written: Any = nibabel.load(labels)
        found = np.asarray(written.dataobj)
    shape = np.array(voxels.shape)
    whole: NDArray[np.uint8] = ndimage.zoom(found, shape / found.shape, order=0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(whole, image.affine), out)
    return costs


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    told = parser.parse_args()
    costs = segment(told.ct, told.out, told.model, told.spacing, told.windows)
    if told.report:
        costs.write(told.report)


if __name__ == "__main__":
    main()
