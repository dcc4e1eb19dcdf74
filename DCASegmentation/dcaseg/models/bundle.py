"""A trained model on disk: a MONAI bundle. It is loaded only if it is complete, and saved completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..errors import BundleError, OutputError, get_reason
from ..imaging.writers import exchange, new_folder, write_json, write_text
from ..json_io import parse_json
from ..method.log_gap import GROUPS
from ..method.network import DCANet
from .metadata import (
    INFERENCE,
    LICENSE,
    METADATA,
    MODEL_CARD,
    WEIGHTS,
    MeasuredScores,
    Metadata,
    Weights,
    is_bundle_file,
)
from .metadata_reader import GET_AGAIN, MAX_METADATA_BYTES, read_metadata
from .model_card import format_license_text, format_model_card
from .monai_config import make_inference_config
from .store import find_default_bundle
from .weight_files import open_regular, require_described
from .weights import StoredType, load_network, write_weights

_MAX_FOLDERS = 1000
# What the configurations of earlier versions name, before the library was called dcaseg.
_RENAMED = {
    "DCASegmentationLib.method.network.": "dcaseg.method.network.",
    "DCASegmentationLib.bundle.exact_rotation": "dcaseg.models.monai_config",
    "DCASegmentationLib.bundle.anti_aliasing": "dcaseg.models.monai_config",
    "DCASegmentationLib.bundle.weights": "dcaseg.models.weights",
}
_BATCH = "sw_batch_size"
# Files that nothing executes. All others may be: MONAI also evaluates expressions in configs/logging.conf.
_DOCUMENTS = {".md", ".txt", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".csv"}
_DOCUMENT_NAMES = {"LICENSE", "LICENCE", "NOTICE", "README", "AUTHORS", "CITATION.cff"}


@dataclass(frozen=True)
class Bundle:
    """A trained model in ``folder``."""

    folder: Path
    metadata: Metadata

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Load the bundle in ``folder``: read its metadata and verify the checksum of its weights.

        Raises BundleError if it is not a complete bundle of this program.
        """
        bundle = cls(folder, read_metadata(folder))
        require_described(folder, bundle.weights)
        return bundle

    @property
    def weights(self) -> Weights:
        """The weight file as described in the metadata."""
        return self.metadata.weights

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights."""
        return self.weights.sha256

    def network(self, device: str | torch.device = "cpu") -> DCANet:
        """The network with its weights (float32), in evaluation mode on ``device``.

        Raises BundleError if the weights are not those described in the metadata, contain code, or do not fit.
        """
        organs = self.metadata.vocabulary
        channels = 1 + sum(len(owned) for owned in self.metadata.network.get("owners", ()))
        if channels != len(self.metadata.class_names):
            raise BundleError(
                f"The model's network has {channels} channels, but {organs.name} needs "
                f"{len(self.metadata.class_names)}.",
                GET_AGAIN,
            )
        return load_network(self.folder, self.metadata.network, self.weights).to(device).eval()


def load_default_model() -> Bundle:
    """The model to use if none is selected. Raises BundleError if there is none or it is damaged."""
    return Bundle.load(find_default_bundle())


@dataclass(frozen=True)
class Verification:
    """The checks that a bundle passed, and what a user should know nevertheless.

    ``code`` lists the files that other programs would execute and that this program neither wrote nor uses.
    """

    bundle: Bundle
    checks: tuple[str, ...]
    warnings: tuple[str, ...]
    code: tuple[str, ...]


def verify(folder: Path) -> Verification:
    """Check everything in the bundle in ``folder``. Raises BundleError at the first problem."""
    bundle = Bundle.load(folder)
    network = bundle.network()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    checks = (
        f"metadata: complete, {bundle.metadata.vocabulary.name}, {len(bundle.metadata.vocabulary)} organs",
        f"weights: {bundle.weights.bytes / 1e6:.1f} MB, SHA-256 as in the metadata, nothing but numbers",
        f"network: {parameters / 1e6:.3f} M parameters, all present, of the right shape and finite",
    )
    return Verification(bundle, checks, tuple(_find_warnings(bundle)), tuple(_find_foreign_code(bundle)))


def _find_warnings(bundle: Bundle) -> list[str]:
    missing = [file for file in (INFERENCE, MODEL_CARD, LICENSE) if not (bundle.folder / file).is_file()]
    warnings = [f"{file} is missing." for file in missing]
    if bundle.metadata.scores is None:
        warnings.append("The metadata contains no measured scores.")
    return warnings


def _find_foreign_code(bundle: Bundle) -> list[str]:
    """Files that MONAI, Python or a shell might execute: a MONAI configuration may contain any Python expression."""
    names: list[str] = []
    for count, (folder, folders, files) in enumerate(os.walk(bundle.folder)):
        if count > _MAX_FOLDERS:
            raise BundleError(f"{bundle.folder} has more folders than any model bundle.", GET_AGAIN)
        paths = [(Path(folder) / file).relative_to(bundle.folder).as_posix() for file in files]
        names += [path for path in paths if not _is_document(path) and not _is_ours(bundle, path)]
        folders.sort()
    return sorted(names)


def _is_document(name: str) -> bool:
    return Path(name).suffix.lower() in _DOCUMENTS or Path(name).name in _DOCUMENT_NAMES


def _is_ours(bundle: Bundle, name: str) -> bool:
    """Whether this program wrote the file ``name`` of the bundle, as its content shows."""
    if name in (METADATA, bundle.weights.file):
        return True
    if name != INFERENCE:
        return False
    try:
        with open_regular(bundle.folder, INFERENCE) as file:
            content = parse_json(file.read(MAX_METADATA_BYTES))
    except (OSError, ValueError, BundleError):
        return False
    written = json.dumps(content)
    for earlier, today in _RENAMED.items():
        written = written.replace(earlier, today)
    found, expected = json.loads(written), json.loads(json.dumps(make_inference_config(bundle.metadata)))
    if isinstance(found, dict) and type(found.get(_BATCH)) is int:
        # A number runs no code, and earlier versions wrote another one.
        found = {**found, _BATCH: expected[_BATCH]}
    return bool(found == expected)


def describe_bundle(bundle: Bundle) -> list[tuple[str, str]]:
    """Rows (name, value) that describe the model to a user, without loading its network."""
    metadata = bundle.metadata
    spacing = " x ".join(f"{side:g}" for side in metadata.spacing)
    depth, height, width = metadata.patch
    low, high = metadata.hu_window
    names = {organ.label: organ.name for organ in metadata.vocabulary}
    groups = zip(GROUPS, metadata.partition.owners, strict=True)
    kind = "expert" if metadata.has_own_experts else "organs"
    rows = [
        ("Name", f"{metadata.name} {metadata.version}"),
        ("Folder", str(bundle.folder)),
        ("Description", metadata.description),
        ("Limits", " ".join(metadata.limits)),
        ("Organs", f"{metadata.vocabulary.name}, {len(metadata.vocabulary)}"),
        *(
            (f"{group.capitalize()} {kind}", ", ".join(names[label] for label in labels) or "-")
            for group, labels in groups
        ),
        ("Grid", f"{spacing} mm, {metadata.orientation}"),
        ("HU window", f"{low:g} to {high:g} HU"),
        ("Patch", f"{depth} x {height} x {width} voxels (depth, height, width)"),
        (
            "Weights",
            f"{metadata.weights.bytes / 1e6:.1f} MB, {metadata.weights.dtype}, SHA-256 {metadata.weights.sha256}",
        ),
        ("License", metadata.licence),
    ]
    for data in metadata.training_data:
        rows.append(("Training data", f"{data.name}: {data.counts}, {data.licence}"))
    if metadata.scores is None:
        return [*rows, ("Mean Dice", "not measured")]
    cases = f"{metadata.scores.cases} case{'s' if metadata.scores.cases != 1 else ''}"
    rows.append(("Mean Dice", f"{metadata.scores.mean_dice:.3f} ({cases}: {metadata.scores.data})"))
    organs = metadata.vocabulary.by_key
    rows += [(f"Dice {organs[key].name}", f"{value:.3f}") for key, value in metadata.scores.dice.items()]
    return rows


def save_bundle(
    folder: Path, network: DCANet, metadata: Metadata, dtype: StoredType = "float16", overwrite: bool = False
) -> Bundle:
    """Save ``network`` as the bundle ``folder``; network options and weights are added to the metadata here.

    ``dtype`` is the type in which the weights are stored; float16 halves the file, and loading returns float32. The
    folder appears when it is complete. An existing bundle is replaced only with ``overwrite``, any other folder never.

    Raises OutputError if it cannot be written, and BundleError if network and metadata do not match.
    """
    with new_folder(folder, overwrite, METADATA, is_bundle_file) as temporary:
        for file in (METADATA, WEIGHTS, MODEL_CARD):
            (temporary / file).parent.mkdir(exist_ok=True)
        weights = write_weights(network, temporary, WEIGHTS, dtype)
        complete = replace(metadata, network=network.options, weights=weights)
        write_json(complete.to_json(), temporary / METADATA)
        write_json(make_inference_config(complete), temporary / INFERENCE)
        write_text(format_model_card(complete), temporary / MODEL_CARD)
        write_text(format_license_text(complete), temporary / LICENSE)
        # An unusable bundle should be refused here rather than by its users.
        Bundle.load(temporary).network()
    return Bundle.load(folder)


def save_scores(folder: Path, scores: MeasuredScores) -> Bundle:
    """Write ``scores`` to the metadata and the model card of the bundle in ``folder``; the weights do not change.

    Raises BundleError if it is not a bundle, and OutputError if it cannot be written.
    """
    scored = replace(read_metadata(folder), scores=scores)
    write_json(scored.to_json(), folder / METADATA)
    write_text(format_model_card(scored), folder / MODEL_CARD)
    return Bundle.load(folder)


_BEFORE = "before"


@contextmanager
def replacing(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder in which to create the new bundle, and the name that the old one, ``folder``, will get.

    If the block succeeds, the new bundle gets the name ``folder``; if it raises, nothing changes. Raises OutputError if
    the folders cannot be renamed; the old bundle then stays in place.
    """
    folder = folder.resolve()
    kept = _find_free_name(folder)
    new = folder.with_name(f"{folder.name}-new-{kept.name.rpartition(_BEFORE)[2].strip('-')}")
    with new_folder(new, recognized_by=METADATA) as temporary:
        yield temporary, kept
    Bundle.load(new)
    try:
        if exchange(new, folder):
            # There is a model of this name at every moment.
            new.rename(kept)
            return
        folder.rename(kept)
        new.rename(folder)
    except BaseException as error:
        # Ctrl+C can also come between the two, or before the first one returns.
        if os.path.lexists(kept) and not os.path.lexists(folder):
            kept.rename(folder)
        if not isinstance(error, OSError):
            raise
        raise OutputError(
            f"{folder} cannot be replaced ({get_reason(error)}); the new model is in {new}.",
            "Close the programs that use the old one.",
        ) from None


def _find_free_name(folder: Path) -> Path:
    """``folder`` with today's date in its name, and a number if that name is taken."""
    today = f"{folder.name}-{_BEFORE}-{datetime.now(timezone.utc):%Y-%m-%d}"
    names = [today, *(f"{today}-{number}" for number in range(2, 1000))]
    return next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
