"""A small network with random weights whose output varies from voxel to voxel, for tests of the inference."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from dcaseg.method.log_gap import partition
from dcaseg.method.network import DCANet
from dcaseg.models.bundle import save_bundle
from dcaseg.models.metadata import Metadata, TrainingData
from dcaseg.organs import AMOS, Vocabulary

PATCH = (32, 32, 32)


def vivid_network(n_labels: int = 3, **options) -> DCANet:
    """A network of ``n_labels`` organs, its heads balanced so that every channel wins somewhere."""
    torch.manual_seed(3)
    third = max(n_labels // 3, 1)
    labels = list(range(1, n_labels + 1))
    owners = [labels[:third], labels[third : 2 * third], labels[2 * third :]]
    network = DCANet(owners=owners, n_filters=2, norm="instance", **options).eval()
    heads = [expert.head for expert in network.experts]
    if network.aggregation is not None:
        heads.append(network.aggregation.head)
        for fusion in network.aggregation.fusions:
            if hasattr(fusion, "gate"):
                torch.nn.init.normal_(fusion.gate.weight)
    with torch.inference_mode():
        for head in heads:
            head.weight *= 20
        parts = network.forward_all(torch.rand(1, 1, *PATCH), ())
        answers = [*parts.experts, parts.aggregated]
        for head, logits in zip(heads, answers, strict=False):
            head.bias -= logits.mean(dim=(0, 2, 3, 4))
    return network


class SmallModel:
    """What a segmenter needs: metadata and a network. ``spacing`` (x, y, z) in mm."""

    def __init__(
        self,
        network: DCANet,
        spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
        orientation: str = "RAS",
        patch: tuple[int, int, int] = PATCH,
    ) -> None:
        n_labels = network.out_channels - 1
        self.weights_sha256 = None
        self._network = network
        self.metadata = SimpleNamespace(
            vocabulary=Vocabulary("few", AMOS.organs[:n_labels]),
            spacing=spacing,
            orientation=orientation,
            hu_window=(-160.0, 240.0),
            patch=patch,
            overlap=0.25,
            anti_aliasing=False,
        )

    def network(self, device: str | torch.device = "cpu") -> DCANet:
        return self._network.to(device)


def save_small_bundle(folder: Path, network: DCANet) -> Path:
    """Save ``network``, for all organs of AMOS, as the bundle ``folder`` with a 12 mm grid. Returns ``folder``."""
    counts = {organ.label: 1000 - organ.label for organ in AMOS}
    groups = network.owners if len(network.owners) == 3 else (range(1, 6), range(6, 11), range(11, 16))
    metadata = Metadata(
        name="random-weights",
        description="Random weights. The results are meaningless.",
        vocabulary=AMOS,
        spacing=(12.0, 12.0, 12.0),
        orientation="RAS",
        hu_window=(-160.0, 240.0),
        patch=PATCH,
        partition=partition(counts, "manual", groups=tuple(tuple(group) for group in groups)),
        training_data=(TrainingData("No data", 0, 0, "CC0-1.0"),),
        limits=("Random weights: nothing it says is true.",),
    )
    return save_bundle(folder, network, metadata).folder
