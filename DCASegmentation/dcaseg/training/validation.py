"""Validation during training: Dice of whole cases on the model grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn
from torch.nn import functional

from ..imaging.label_comparison import compute_dice_by_label
from .cases import Case
from .options import TrainingOptions
from .strategies.base import ScoredNetwork

# With a single small volume, PyTorch chooses a convolution that is several times slower on the CPU.
WINDOWS_AT_ONCE = 2


class ValidationStopped(Exception):  # noqa: N818 - the user requested it, it is not an error
    """The validation was stopped before its last case."""


def validate(
    network: ScoredNetwork,
    cases: Sequence[Case],
    options: TrainingOptions,
    overlap: float = 0.25,
    stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Mean Dice over ``cases`` for each label 1 to K; NaN for a label that is annotated in no case.

    ``overlap`` is that of the sliding window, as a fraction of the patch. The network's training mode is restored.
    Raises ValidationStopped if ``stop``, which is called before each case, returns True.
    """
    scores = []
    for case in cases:
        if stop is not None and stop():
            raise ValidationStopped
        if case.labels is None:
            raise ValueError(f"case {case.name} has no labels to validate on")
        predicted = predict(network, case, options, overlap)
        dice = compute_dice_by_label(predicted, case.labels, network.out_channels - 1)
        dice[[label - 1 for label in case.unannotated]] = np.nan
        scores.append(dice)
    table = np.array(scores)
    counts = np.sum(~np.isnan(table), axis=0)
    return np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)


def predict(network: nn.Module, case: Case, options: TrainingOptions, overlap: float = 0.25) -> np.ndarray:
    """Segment ``case`` with a sliding window: its label map (depth, height, width). Restores the training mode."""
    labels: np.ndarray = _predict_logits(network, case, options, overlap).argmax(dim=1)[0].cpu().numpy()
    return labels


def predict_with_confidence(
    network: ScoredNetwork, case: Case, options: TrainingOptions, overlap: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Segment ``case``: labels (uint8), and the probability of each voxel's label (uint16, 65535 is 1).

    Both are (depth, height, width).
    """
    confidence, labels = _predict_logits(network, case, options, overlap)[0].softmax(dim=0).max(dim=0)
    return labels.cpu().numpy().astype(np.uint8), (confidence * 65535).round().cpu().numpy().astype(np.uint16)


@torch.inference_mode()
def _predict_logits(network: nn.Module, case: Case, options: TrainingOptions, overlap: float) -> torch.Tensor:
    """Logits (1, channel, depth, height, width) of the whole case."""
    device = next(network.parameters()).device
    volume = torch.from_numpy(case.scale_intensity(case.hu, options.grid))[None, None].to(device)
    depth = volume.shape[2]
    missing = max(options.patch[0] - depth, 0) if options.short_scans == "repeat" else 0
    if missing:
        # As inference pads (inference.sliding_window.Padding).
        volume = functional.pad(volume, (0, 0, 0, 0, missing // 2, missing - missing // 2), mode="replicate")
    training = network.training
    network.eval()
    try:
        logits = sliding_window_inference(
            volume, options.patch, WINDOWS_AT_ONCE, network, overlap=overlap, mode="gaussian"
        )
    finally:
        network.train(training)
    assert isinstance(logits, torch.Tensor)
    return logits[:, :, missing // 2 : missing // 2 + depth]
