"""A trained model on disk: a MONAI bundle, loaded only if it is whole, and saved whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..errors import BundleError, OutputError
from ..imaging.writers import exchange, new_folder, write_json, write_text
from ..json_io import parse_json
from ..method.log_gap import GROUPS
from ..method.network import DCANet
from .metadata import INFERENCE, LICENSE, METADATA, MODEL_CARD, WEIGHTS, MeasuredScores, Metadata, Weights
from .metadata_reader import GET_AGAIN, MOST_METADATA_BYTES, read_metadata
from .model_card import licence_text, model_card
from .monai_config import inference_config
from .store import default_bundle
from .weight_files import open_regular, require_described
from .weights import StoredType, load_network, write_weights

_MOST_FOLDERS = 1000
# What the configurations of earlier versions name, before the library was called dcaseg.
_RENAMED = {
    "DCASegmentationLib.method.network.": "dcaseg.method.network.",
    "DCASegmentationLib.bundle.exact_rotation": "dcaseg.models.monai_config",
    "DCASegmentationLib.bundle.anti_aliasing": "dcaseg.models.monai_config",
    "DCASegmentationLib.bundle.weights": "dcaseg.models.weights",
}
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
    written = json.dumps(content)
    for earlier, today in _RENAMED.items():
        written = written.replace(earlier, today)
    return bool(json.loads(written) == json.loads(json.dumps(inference_config(bundle.metadata))))


def information(bundle: Bundle) -> list[tuple[str, str]]:
    """Rows (name, value) that tell a user what the model is, without loading its network."""
    metadata = bundle.metadata
    spacing = " x ".join(f"{side:g}" for side in metadata.spacing)
    depth, height, width = metadata.patch
    low, high = metadata.hu_window
    names = {organ.label: organ.name for organ in metadata.vocabulary}
    groups = zip(GROUPS, metadata.partition.owners, strict=True)
    rows = [
        ("Name", f"{metadata.name} {metadata.version}"),
        ("Folder", str(bundle.folder)),
        ("Description", metadata.description),
        ("Limits", " ".join(metadata.limits)),
        ("Organs", f"{metadata.vocabulary.name}, {len(metadata.vocabulary)}"),
        *(
            (f"{group.capitalize()} expert", ", ".join(names[label] for label in labels) or "-")
            for group, labels in groups
        ),
        ("Grid", f"{spacing} mm, {metadata.orientation}"),
        ("HU window", f"{low:g} to {high:g} HU"),
        ("Patch", f"{depth} x {height} x {width} voxels (depth, height, width)"),
        (
            "Weights",
            f"{metadata.weights.bytes / 1e6:.1f} MB, {metadata.weights.dtype}, SHA-256 {metadata.weights.sha256}",
        ),
        ("Licence", metadata.licence),
    ]
    for data in metadata.training_data:
        counts = f"{data.labelled} labelled and {data.unlabelled} unlabelled cases"
        rows.append(("Training data", f"{data.name}: {counts}, {data.licence}"))
    if metadata.scores is None:
        return [*rows, ("Mean Dice", "not measured")]
    rows.append(
        ("Mean Dice", f"{metadata.scores.mean_dice:.3f} ({metadata.scores.cases} cases: {metadata.scores.data})")
    )
    organs = metadata.vocabulary.by_key
    rows += [(f"Dice {organs[key].name}", f"{value:.3f}") for key, value in metadata.scores.dice.items()]
    return rows


def save_bundle(
    folder: Path, network: DCANet, metadata: Metadata, dtype: StoredType = "float16", overwrite: bool = False
) -> Bundle:
    """Save ``network`` as the bundle ``folder``; network options and weights are filled into the metadata here.

    ``dtype`` is the type the weights are stored in; float16 halves the file, and loading gives float32 again. The
    folder appears when it is complete. An existing bundle is replaced only with ``overwrite``, any other folder never.

    Raises OutputError where it cannot be written, BundleError if network and metadata do not fit together.
    """
    with new_folder(folder, overwrite=overwrite, recognized_by=METADATA) as temporary:
        for file in (METADATA, WEIGHTS, MODEL_CARD):
            (temporary / file).parent.mkdir(exist_ok=True)
        weights = write_weights(network, temporary, WEIGHTS, dtype)
        complete = replace(metadata, network=network.options, weights=weights)
        write_json(complete.to_json(), temporary / METADATA)
        write_json(inference_config(complete), temporary / INFERENCE)
        write_text(model_card(complete), temporary / MODEL_CARD)
        write_text(licence_text(complete), temporary / LICENSE)
        # Better refused here, by the checks of loading, than by whoever gets the bundle.
        Bundle.load(temporary).network()
    return Bundle.load(folder)


def save_scores(folder: Path, scores: MeasuredScores) -> Bundle:
    """Write ``scores`` into the metadata and the model card of the bundle in ``folder``; weights stay untouched.

    Raises BundleError if it is no bundle, OutputError where it cannot be written.
    """
    scored = replace(read_metadata(folder), scores=scores)
    write_json(scored.to_json(), folder / METADATA)
    write_text(model_card(scored), folder / MODEL_CARD)
    return Bundle.load(folder)


_BEFORE = "before"


@contextmanager
def replacing(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yields a folder to make the new bundle in and the name that the old one, ``folder``, will have.

    When the block succeeds the new bundle takes the name ``folder``; where it raises, everything is as it was. Raises
    OutputError where the folders cannot be renamed; then, too, the old bundle is in its place.
    """
    folder = folder.resolve()
    kept = _free_name(folder)
    new = folder.with_name(f"{folder.name}-new-{kept.name.rpartition(_BEFORE)[2].strip('-')}")
    with new_folder(new, recognized_by=METADATA) as temporary:
        yield temporary, kept
    Bundle.load(new)
    try:
        if exchange(new, folder):
            # The name is never without a model.
            new.rename(kept)
            return
        folder.rename(kept)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be renamed ({error.strerror}); the new model is in {new}.", "Close what uses the old one."
        ) from None
    try:
        new.rename(folder)
    except OSError as error:
        kept.rename(folder)
        raise OutputError(f"{folder} cannot be replaced ({error.strerror}).", f"The new model is in {new}.") from None


def _free_name(folder: Path) -> Path:
    """``folder`` with the day in its name, and a number where there is one of that day."""
    today = f"{folder.name}-{_BEFORE}-{datetime.now(timezone.utc):%Y-%m-%d}"
    names = [today, *(f"{today}-{number}" for number in range(2, 1000))]
    return next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
