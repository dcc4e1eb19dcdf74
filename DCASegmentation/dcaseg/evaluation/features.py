"""What a trained network makes of whole cases inside: features of its last decoder block, fused maps."""

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


def last_block(network: DCANet) -> nn.Module:
    """DeB-9 of the decoder that gives the result. Raises ValueError for several experts without aggregation decoder."""
    if network.aggregation is not None:
        return network.aggregation.blocks[-1]
    if len(network.experts) == 1:
        return network.experts[0].blocks[-1]  # type: ignore[return-value, index]
    raise ValueError("stitched experts have no last block in common")


def last_fusion(network: DCANet) -> nn.Module:
    """The fusion before DeB-9 of the aggregation decoder. Raises ValueError for a network without one."""
    if network.aggregation is None:
        raise ValueError("a network without aggregation decoder fuses nothing")
    return network.aggregation.fusions[-1]


@torch.inference_mode()
def feature_volume(network: DCANet, layer: nn.Module, case: Case, options: TrainingOptions) -> np.ndarray:
    """What ``layer`` of ``network`` gives for a whole case: float32 (channel, depth, height, width).

    ``layer`` works at full resolution. Windows are averaged as logits are. Leaves the network's mode.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, given: Any, result: Any) -> None:
        caught.append(result if isinstance(result, Tensor) else result.features)

    def features(volume: Tensor) -> Tensor:
        caught.clear()
        network(volume)
        return caught[0]

    training = network.training
    network.eval()
    handle = layer.register_forward_hook(catch)
    try:
        device = next(network.parameters()).device
        volume = torch.from_numpy(case.scaled(case.hu, options.grid))[None, None]
        found = sliding_window_inference(
            volume,
            options.patch,
            WINDOWS_AT_ONCE,
            features,
            overlap=_OVERLAP,
            mode="gaussian",
            sw_device=device,
            device="cpu",
        )
    finally:
        handle.remove()
        network.train(training)
    assert isinstance(found, Tensor)
    array: np.ndarray = found[0].float().numpy()
    return array


@dataclass(frozen=True)
class SampledVoxels:
    """Voxels (n, 3) of cases, the index of each one's case, and its label."""

    positions: np.ndarray
    cases: np.ndarray
    labels: np.ndarray


def balanced_voxels(cases: Sequence[Case], per_organ: int, seed: int = 0) -> SampledVoxels:
    """``per_organ`` voxels of each organ in all ``cases`` together, the same number from each case that has it.

    A small organ gives as many as the liver; one with fewer voxels gives them all.
    """
    generator = np.random.default_rng(seed)
    positions: list[np.ndarray] = []
    owners: list[int] = []
    labels: list[int] = []
    for label in sorted({label for case in cases for label in case.positions}):
        holders = [index for index, case in enumerate(cases) if label in case.positions]
        for share, index in zip(_shares(per_organ, len(holders)), holders, strict=True):
            there = cases[index].positions[label]
            chosen = there[generator.permutation(len(there))[:share]]
            positions.append(chosen)
            owners += [index] * len(chosen)
            labels += [label] * len(chosen)
    return SampledVoxels(np.concatenate(positions), np.array(owners), np.array(labels))


def features_at(
    network: DCANet, layer: nn.Module, cases: Sequence[Case], options: TrainingOptions, voxels: SampledVoxels
) -> np.ndarray:
    """Features (n, channel) of ``layer`` at ``voxels`` of ``cases``, one case in memory after the other."""
    found: np.ndarray | None = None
    for index, case in enumerate(cases):
        of_case = voxels.cases == index
        if not of_case.any():
            continue
        volume = feature_volume(network, layer, case, options)
        found = np.zeros((len(voxels.labels), len(volume)), np.float32) if found is None else found
        found[of_case] = volume[(slice(None), *voxels.positions[of_case].T)].T
    assert found is not None
    return found


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
