"""A bundle from disk, refused unless it is whole and holds nothing but what it says."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BundleError
from ..json_reading import parse_json
from ..method.network import DCANet
from .finding import default_bundle
from .metadata import INFERENCE, LICENSE, METADATA, MODEL_CARD, Metadata, Weights
from .metadata_reading import GET_AGAIN, MOST_METADATA_BYTES, read_metadata
from .monai_config import inference_config
from .weight_file import open_regular, require_described
from .weights import load_network

_MOST_FOLDERS = 1000
# Configurations of MONAI, programs, and files that unpickling or loading would run.
_CODE = {
    *(".json", ".yaml", ".yml", ".py", ".pyc", ".pyw", ".ipynb", ".sh", ".bat", ".cmd", ".ps1", ".exe"),
    *(".so", ".dll", ".dylib", ".pt", ".pth", ".ts", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".whl", ".jar"),
}


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
        require_described(folder, bundle.weights)
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
        organs = self.metadata.vocabulary
        channels = 1 + sum(len(owned) for owned in self.metadata.network.get("owners", ()))
        if channels != len(self.metadata.class_names):
            raise BundleError(
                f"The model's network gives {channels} channels, but {organs.name} needs "
                f"{len(self.metadata.class_names)}.",
                GET_AGAIN,
            )
        return load_network(self.folder, self.metadata.network, self.weights).to(device).eval()


def default_model() -> Bundle:
    """The model to use when none is named. Raises BundleError if there is none, or if it is damaged."""
    return Bundle.load(default_bundle())


@dataclass(frozen=True)
class Verification:
    """What was checked and found good, and what a user should know nevertheless.

    ``code`` are the files of the bundle that other programs would run, and that this program neither wrote nor uses.
    """

    bundle: Bundle
    checks: tuple[str, ...]
    warnings: tuple[str, ...]
    code: tuple[str, ...]


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
    return Verification(bundle, checks, tuple(_warnings(bundle)), tuple(_foreign_code(bundle)))


def _warnings(bundle: Bundle) -> list[str]:
    missing = [file for file in (INFERENCE, MODEL_CARD, LICENSE) if not (bundle.folder / file).is_file()]
    warnings = [f"{file} is missing." for file in missing]
    if bundle.metadata.scores is None:
        warnings.append("The metadata hold no measured scores.")
    return warnings


def _foreign_code(bundle: Bundle) -> list[str]:
    """Files that MONAI, Python or a shell would run: a configuration of MONAI may hold any Python expression."""
    found = []
    for count, (place, folders, files) in enumerate(os.walk(bundle.folder)):
        if count > _MOST_FOLDERS:
            raise BundleError(f"{bundle.folder} has more folders than any model bundle.", GET_AGAIN)
        names = [(Path(place) / name).relative_to(bundle.folder).as_posix() for name in files]
        found += [name for name in names if Path(name).suffix.lower() in _CODE and not _is_ours(bundle, name)]
        folders.sort()
    return sorted(found)


def _is_ours(bundle: Bundle, name: str) -> bool:
    if name in (METADATA, bundle.weights.file):
        return True
    if name != INFERENCE:
        return False
    try:
        with open_regular(bundle.folder, INFERENCE) as file:
            content = parse_json(file.read(MOST_METADATA_BYTES))
    except (OSError, ValueError, BundleError):
        return False
    return bool(content == json.loads(json.dumps(inference_config(bundle.metadata))))
