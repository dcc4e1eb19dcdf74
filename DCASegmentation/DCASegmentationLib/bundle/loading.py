"""A bundle from disk, refused unless it is whole and holds nothing but what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BundleError
from ..method.network import DCANet
from .finding import default_bundle
from .metadata import INFERENCE, LICENSE, MODEL_CARD, Metadata, Weights
from .metadata_reading import GET_AGAIN, read_metadata
from .monai_config import inference_config
from .weight_file import read_checked
from .weights import fill, read_weights


@dataclass(frozen=True)
class Bundle:
    """A trained model in ``folder``."""

    folder: Path
    metadata: Metadata

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """The bundle in ``folder``, its metadata read and the checksum of its weights compared.

        Raises BundleError for anything that is not a whole bundle of this program.
        """
        bundle = cls(folder, read_metadata(folder))
        read_checked(folder, bundle.weights)
        return bundle

    @property
    def weights(self) -> Weights:
        """The weight file as the metadata describe it."""
        return self.metadata.weights

    @property
    def weights_sha256(self) -> str:
        """The checksum that names the weights."""
        return self.weights.sha256

    def network(self, device: str | torch.device = "cpu") -> DCANet:
        """The network with its weights (float32), in evaluation mode on ``device``.

        Raises BundleError if the weights are not those the metadata describe, hold code, or do not fit.
        """
        try:
            network = DCANet(**self.metadata.network)
        except (TypeError, ValueError) as error:
            raise BundleError(f"The model's network options are wrong: {error}.", GET_AGAIN) from None
        if network.out_channels != len(self.metadata.class_names):
            raise BundleError(
                f"The model's network gives {network.out_channels} channels, but {self.metadata.vocabulary.name} needs "
                f"{len(self.metadata.class_names)}.",
                GET_AGAIN,
            )
        fill(network, read_weights(self.folder, self.weights), self.weights.file)
        return network.to(device).eval()


def default_model() -> Bundle:
    """The model to use when none is named. Raises BundleError if there is none, or if it is damaged."""
    return Bundle.load(default_bundle())


@dataclass(frozen=True)
class Verification:
    """What was checked and found good, and what a user should know nevertheless."""

    bundle: Bundle
    checks: tuple[str, ...]
    warnings: tuple[str, ...]


def verify(folder: Path) -> Verification:
    """Check everything in the bundle in ``folder``. Raises BundleError at the first thing that is wrong."""
    bundle = Bundle.load(folder)
    network = bundle.network()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    checks = (
        f"metadata: complete, {bundle.metadata.vocabulary.name}, {len(bundle.metadata.vocabulary)} organs",
        f"weights: {bundle.weights.bytes / 1e6:.1f} MB, SHA-256 as in the metadata, nothing but numbers",
        f"network: {parameters / 1e6:.3f} M parameters, each one there, of its shape and finite",
    )
    return Verification(bundle, checks, tuple(_warnings(bundle)))


def _warnings(bundle: Bundle) -> list[str]:
    missing = [file for file in (INFERENCE, MODEL_CARD, LICENSE) if not (bundle.folder / file).is_file()]
    warnings = [f"{file} is missing." for file in missing]
    if INFERENCE not in missing and not _is_ours(bundle):
        # MONAI runs any Python expression in a configuration.
        warnings.append(f"{INFERENCE} is not the one this program writes: read it before MONAI runs it.")
    if bundle.metadata.scores is None:
        warnings.append("The metadata hold no measured scores.")
    return warnings


def _is_ours(bundle: Bundle) -> bool:
    try:
        content = json.loads((bundle.folder / INFERENCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(content == json.loads(json.dumps(inference_config(bundle.metadata))))
