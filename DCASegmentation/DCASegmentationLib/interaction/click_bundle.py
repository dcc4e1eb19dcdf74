"""The network of the clicks on disk: metadata and a checked weight file, as other models have them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..bundle.metadata import METADATA, WEIGHTS, TrainingData, Weights
from ..bundle.metadata_reading import GET_AGAIN
from ..bundle.weights import load_weights, write_weights
from ..errors import BundleError
from ..imaging.writing import new_folder, write_json, write_text
from .network import CHANNELS, ClickNetwork, ClickNetworkOptions

FORMAT = 1
LICENSE = "LICENSE"
_KIND = "dca_clicks"


@dataclass(frozen=True)
class ClickBundle:
    """A network for clicks in ``folder``, its weights described by ``weights``.

    ``training_data`` are the sources of its training cases, ``scores`` what was measured, ``steps`` its training.
    """

    folder: Path
    name: str
    options: ClickNetworkOptions
    weights: Weights
    training_data: tuple[TrainingData, ...] = ()
    steps: int = 0
    scores: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"

    def network(self) -> ClickNetwork:
        """The network with its weights. Raises BundleError unless the file is the one described, and nothing else."""
        return load_weights(self.folder, self.weights, lambda: ClickNetwork(**asdict(self.options))).eval()


def save_click_bundle(
    folder: Path,
    network: ClickNetwork,
    name: str,
    training_data: Sequence[TrainingData],
    steps: int,
    scores: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ClickBundle:
    """Write the bundle ``folder``, whole or not at all. Raises OutputError where it cannot be written."""
    with new_folder(folder, overwrite=overwrite, recognized_by=METADATA) as temporary:
        for file in (METADATA, WEIGHTS):
            (temporary / file).parent.mkdir(exist_ok=True)
        weights = write_weights(network, temporary, WEIGHTS, "float16")
        content = {
            "name": name,
            "version": "0.1.0",
            "task": "Correction of any structure in CT with clicks",
            "description": f"Class-agnostic click network, {steps} steps on synthetic CT with simulated clicks.",
            "intended_use": "Research. This is no medical device.",
            "license": "Apache-2.0",
            _KIND: {
                "format": FORMAT,
                "network": asdict(network.options),
                "channels": list(CHANNELS),
                "weights": asdict(weights),
                "training_data": [asdict(each) for each in training_data],
                "steps": steps,
                "scores": dict(scores or {}),
            },
        }
        write_json(content, temporary / METADATA)
        write_text(_LICENSE, temporary / LICENSE)
        load_click_bundle(temporary).network()
    return load_click_bundle(folder)


def load_click_bundle(folder: Path) -> ClickBundle:
    """The bundle in ``folder``, its weights not read yet. Raises BundleError where it is none."""
    path = folder / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own = content[_KIND]
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(
            f"{folder} is no bundle of a network for clicks.", "Choose one that dca train-clicks made."
        ) from None
    try:
        if own["format"] != FORMAT or tuple(own["channels"]) != CHANNELS:
            raise ValueError("another format")
        return ClickBundle(
            folder=folder,
            name=str(content["name"]),
            options=ClickNetworkOptions(**own["network"]),
            weights=Weights(**own["weights"]),
            training_data=tuple(TrainingData(**each) for each in own["training_data"]),
            steps=int(own["steps"]),
            scores=dict(own["scores"]),
            licence=str(content["license"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"The metadata of {folder} are damaged ({error}).", GET_AGAIN) from None


_LICENSE = """The weights of this model are licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The data they were trained on and their
licences are listed in configs/metadata.json.
"""
