"""Segmentation without any shortcut, to compare ours with.

The whole volume is covered with windows that overlap by half, by MONAI's ``sliding_window_inference``; probabilities
of all channels are resampled to the CT's grid as whole volumes, and only then the largest one gives the label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference

from ..bundle.loading import Bundle
from ..imaging.grid import Grid, model_grid
from ..imaging.intensity import window
from ..imaging.resampling import resample
from ..method.network import DCANet


def plain_segmentation(ct: sitk.Image, bundle: Bundle, network: DCANet) -> sitk.Image:
    """Labels (uint8) of ``ct`` on its own grid by ``network``, which is the bundle's, on the CPU."""
    metadata = bundle.metadata
    grid = model_grid(ct, metadata.spacing, metadata.orientation)
    # A view does not keep its image alive: each image has a name for as long as its view is used.
    resampled = resample(ct, grid, anti_aliasing=metadata.anti_aliasing)
    volume = window(sitk.GetArrayViewFromImage(resampled), *metadata.hu_window)
    with torch.inference_mode():
        logits: Any = sliding_window_inference(
            torch.from_numpy(volume)[None, None], metadata.patch, 1, network, overlap=0.5, mode="gaussian"
        )
        probabilities = torch.softmax(logits, dim=1)[0].numpy()
    ct_grid = Grid.of(ct)
    labels = np.zeros(ct_grid.shape, dtype=np.uint8)
    highest = np.full(ct_grid.shape, -1.0, dtype=np.float32)
    # Channel by channel, the largest so far kept: the same argmax without sixteen CT-sized volumes.
    for label, channel in enumerate(probabilities):
        # Beyond the outermost voxel centers the outermost probabilities hold, as MONAI has it.
        on_ct_grid = resample(_with_rim(grid.image_of(channel)), ct_grid, outside=0.0)
        values = sitk.GetArrayViewFromImage(on_ct_grid)
        wins = values > highest
        labels[wins] = label
        highest[wins] = values[wins]
    return ct_grid.image_of(labels)


def _with_rim(image: sitk.Image) -> sitk.Image:
    return sitk.ZeroFluxNeumannPad(image, [1] * 3, [1] * 3)
