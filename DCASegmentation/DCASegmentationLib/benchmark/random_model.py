"""A model of the size to be measured, with random weights: what it finds means nothing, its cost is the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..bundle.loading import Bundle
from ..bundle.metadata import METADATA, Metadata, TrainingData
from ..bundle.saving import save_bundle
from ..method.log_gap import partition
from ..method.network import DCANet
from ..method.vnet import Norm
from ..organs import AMOS

PATCH = (96, 96, 96)
_SEED = 0


def random_bundle(
    folder: Path,
    spacing_mm: float,
    n_filters: int = 16,
    norm: Norm = "batch",
    patch: tuple[int, int, int] = PATCH,
) -> Bundle:
    """The bundle of a network for the 15 organs of AMOS on an isotropic grid, in ``folder``, made there on first use.

    The heads are balanced on noise, so that every channel is the largest somewhere and no step of the way back to the
    CT's grid has less to do than with a trained model.
    """
    sides = "x".join(map(str, patch))
    path = folder / f"random_{n_filters}_filters_{norm}_{sides}_{spacing_mm:g}mm"
    if (path / METADATA).exists():
        return Bundle.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    groups = partition({organ.label: 4 ** (len(AMOS) - organ.label) for organ in AMOS}, "average")
    metadata = Metadata(
        name=path.name,
        description="Random weights, to measure time and memory with.",
        vocabulary=AMOS,
        spacing=(spacing_mm, spacing_mm, spacing_mm),
        orientation="RAS",
        hu_window=(-125.0, 275.0),
        patch=patch,
        partition=groups,
        training_data=(TrainingData("No data", 0, 0, "CC0-1.0"),),
        limits=("Random weights: nothing it says is true.",),
    )
    return save_bundle(path, _network(groups.owners, n_filters, norm), metadata)


def _network(owners: list[list[int]] | tuple[tuple[int, ...], ...], n_filters: int, norm: Norm) -> DCANet:
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        network = DCANet(owners, n_filters=n_filters, norm=norm).eval()
        noise = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        parts = network.forward_parts(noise, ())
        heads: list[Any] = [expert.head for expert in network.experts]
        if network.aggregation is not None:
            heads.append(network.aggregation.head)
        for head, logits in zip(heads, (*parts.experts, parts.aggregated), strict=True):
            head.bias -= logits.mean(dim=(0, 2, 3, 4))
    return network
