"""Features inside a trained network for whole cases: the last decoder block and the last fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from ..method.network import DCANet
from ..training.cases import Case
from ..training.options import TrainingOptions
from ..training.validation import WINDOWS_AT_ONCE

_OVERLAP = 0.25


def get_last_block(network: DCANet) -> nn.Module:
    """DeB-9 of the decoder that gives the result.

    Raises ValueError for a network with several experts and no aggregation decoder.
    """
    if network.aggregation is not None:
        return network.aggregation.blocks[-1]
    if len(network.experts) == 1:
        return network.experts[0].blocks[-1]  # type: ignore[return-value, index]
    raise ValueError("stitched experts do not share a last block")


def get_last_fusion(network: DCANet) -> nn.Module:
    """The fusion before DeB-9 of the aggregation decoder. Raises ValueError for a network without one."""
    if network.aggregation is None:
        raise ValueError("a network without an aggregation decoder has no fusion")
    return network.aggregation.fusions[-1]


@torch.inference_mode()
def extract_feature_volume(network: DCANet, layer: nn.Module, case: Case, options: TrainingOptions) -> np.ndarray:
    """The output of ``layer`` of ``network`` for a whole case: float32 (channel, depth, height, width).

    ``layer`` must work at full resolution. Windows are averaged like logits. Does not change the network's mode.
    """
    outputs: list[Tensor] = []

    def keep_output(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output.features)

    def compute_features(volume: Tensor) -> Tensor:
        outputs.clear()
        network(volume)
        return outputs[0]

    training = network.training
    network.eval()
    handle = layer.register_forward_hook(keep_output)
    try:
        device = next(network.parameters()).device
        volume = torch.from_numpy(case.scale_intensity(case.hu, options.grid))[None, None]
        result = sliding_window_inference(
            volume,
            options.patch,
            WINDOWS_AT_ONCE,
            compute_features,
            overlap=_OVERLAP,
            mode="gaussian",
            sw_device=device,
            device="cpu",
        )
    finally:
        handle.remove()
        network.train(training)
    assert isinstance(result, Tensor)
    array: np.ndarray = result[0].float().numpy()
    return array


@dataclass(frozen=True)
class SampledVoxels:
    """Voxel ``positions`` (n, 3), the index of the case of each (n,), and its label (n,)."""

    positions: np.ndarray
    cases: np.ndarray
    labels: np.ndarray


def sample_balanced_voxels(cases: Sequence[Case], per_organ: int, seed: int = 0) -> SampledVoxels:
    """Draw ``per_organ`` voxels of each organ, divided equally among the ``cases`` that contain it.

    Small organs give as many voxels as large ones. An organ with fewer voxels than its share in a case gives all of
    them.
    """
    generator = np.random.default_rng(seed)
    positions: list[np.ndarray] = []
    owners: list[int] = []
    labels: list[int] = []
    for label in sorted({label for case in cases for label in case.positions}):
        holders = [index for index, case in enumerate(cases) if label in case.positions]
        for count, index in zip(_split_evenly(per_organ, len(holders)), holders, strict=True):
            voxels = cases[index].positions[label]
            chosen = voxels[generator.permutation(len(voxels))[:count]]
            positions.append(chosen)
            owners += [index] * len(chosen)
            labels += [label] * len(chosen)
    return SampledVoxels(np.concatenate(positions), np.array(owners), np.array(labels))


def extract_features(
    network: DCANet, layer: nn.Module, cases: Sequence[Case], options: TrainingOptions, voxels: SampledVoxels
) -> np.ndarray:
    """Features (n, channel) of ``layer`` at ``voxels`` of ``cases``. Only one case's features are in memory at a
    time."""
    result: np.ndarray | None = None
    for index, case in enumerate(cases):
        of_case = voxels.cases == index
        if not of_case.any():
            continue
        volume = extract_feature_volume(network, layer, case, options)
        result = np.zeros((len(voxels.labels), len(volume)), np.float32) if result is None else result
        result[of_case] = volume[(slice(None), *voxels.positions[of_case].T)].T
    assert result is not None
    return result


def _split_evenly(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
