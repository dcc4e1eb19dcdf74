"""Reading of metadata from JSON that may be damaged, older, newer, or of another program."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import BundleError
from ..json_io import DataError, load, parse_json
from ..method.log_gap import Partition
from ..method.variants import Combination, FusionKind, Norm, UpsamplingMode
from ..option_fields import make_option_metadata, option
from ..organs import VOCABULARIES, Vocabulary
from .metadata import FORMAT, METADATA, WEIGHTS, MeasuredScores, Metadata, TrainingData, Weights
from .weight_files import GET_AGAIN, open_regular

MAX_METADATA_BYTES = 1 << 20
# Limits that no model of this program approaches, and that every computer can handle.
_MAX_WEIGHT_BYTES = 512 << 20
_MAX_FILTERS, _MAX_STAGES, _MAX_DILATION, _MAX_EXPERTS = 32, 8, 16, 8
_MAX_MEMBERS = 8
_MAX_PATCH_VOXELS = 1 << 26  # voxels
_MAX_COUNT = 1e15  # voxels


@dataclass(frozen=True)
class _Network:
    """The options of the network, as far as they can be checked without building it."""

    owners: tuple[tuple[int, ...], ...] = option((), minimum=1)
    in_channels: int = option(1, minimum=1, maximum=1)
    n_filters: int = option(16, minimum=1, maximum=_MAX_FILTERS)
    norm: Norm = "batch"
    n_stages: tuple[tuple[int, ...], ...] = option((), minimum=1, maximum=_MAX_STAGES)
    dilations: tuple[tuple[int, ...], ...] = option((), minimum=1, maximum=_MAX_DILATION)
    fusion: FusionKind = "dfam"
    aggregation: bool = True
    stitching: Combination = "background_relative"
    dropout: float = option(0.0, minimum=0, below=1)
    upsampling: UpsamplingMode = "transposed"
    residual: bool = False
    # Only in an ensemble (see ``method.ensemble``).
    members: int = option(1, minimum=1, maximum=_MAX_MEMBERS)
    mean_of: Literal["logits", "probabilities"] = "logits"
    # Only with channel attention (see ``method.channel_attention``).
    attended_patch: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        max_labels = max(map(len, VOCABULARIES.values()))
        for name, longest in (("owners", max_labels), ("n_stages", 4), ("dilations", 4)):
            rows = getattr(self, name)
            if len(rows) > _MAX_EXPERTS or any(len(row) > longest for row in rows):
                raise ValueError(f"{name} has too many numbers")


@dataclass(frozen=True)
class _Organ:
    label: int
    key: str


@dataclass(frozen=True)
class _VocabularyPart:
    name: str
    organs: tuple[_Organ, ...]


@dataclass(frozen=True)
class _Format:
    format: float


@dataclass(frozen=True)
class _Own:
    """The part of the metadata that this program needs."""

    vocabulary: _VocabularyPart
    spacing_mm: tuple[float, float, float] = field(metadata=make_option_metadata(minimum=0.2, maximum=50.0))
    orientation: str
    hu_window: tuple[float, float]
    patch: tuple[int, int, int] = field(metadata=make_option_metadata(minimum=16, maximum=512))
    network: Mapping[str, Any]
    partition: Partition
    training_data: tuple[TrainingData, ...]
    licence: str
    limits: tuple[str, ...]
    scores: MeasuredScores | None
    weights: Weights
    # Older bundles do not state their overlap; they were run with half a side.
    overlap: float = option(0.5, minimum=0, maximum=0.95)
    # Older bundles were trained without the filter.
    anti_aliasing: bool = False


@dataclass(frozen=True)
class _Content:
    """The metadata file."""

    name: str
    description: str
    version: str
    authors: str
    copyright: str
    dca: _Own


def read_metadata(folder: Path) -> Metadata:
    """The metadata of the bundle in ``folder``. Raises BundleError with the problem."""
    _require_bundle(folder)
    with open_regular(folder, METADATA) as file:
        content = file.read(MAX_METADATA_BYTES + 1)
    return parse_metadata(content, folder)


def parse_metadata(raw: bytes, folder: Path) -> Metadata:
    """The metadata in ``raw``, the content of the metadata file of ``folder``. Raises BundleError."""
    if len(raw) > MAX_METADATA_BYTES:
        raise BundleError(f"The metadata of {folder} is larger than that of any model.", GET_AGAIN)
    try:
        content = parse_json(raw)
    except ValueError:
        raise BundleError(f"{folder / METADATA} cannot be read as JSON.", GET_AGAIN) from None
    if not isinstance(content, dict) or "dca" not in content:
        raise BundleError(
            f"{folder} is a MONAI bundle of another program: its metadata has no 'dca' part.",
            "Choose a bundle made by this program.",
        )
    try:
        _check_format(load(_Format, content["dca"], "dca", ignore_unknown=True).format, folder)
        return _build_metadata(load(_Content, content, ignore_unknown=True))
    except DataError as error:
        if error.is_missing:
            raise BundleError(f"The model's metadata lacks '{error.key}'.", GET_AGAIN) from None
        raise BundleError(f"The model's metadata is wrong: {error}.", GET_AGAIN) from None


def _require_bundle(folder: Path) -> None:
    if folder.is_file():
        if folder.suffix.lower() == ".zip":
            raise BundleError(f"{folder} is a zip file.", "Unpack it and choose the folder inside.")
        raise BundleError(f"{folder} is a file, not a model bundle.", f"Choose the folder that contains {METADATA}.")
    if not folder.is_dir():
        raise BundleError(f"There is no model bundle {folder}.", "Check the path.")
    if not (folder / METADATA).exists():
        raise BundleError(f"{folder} is not a model bundle: it has no {METADATA}.", "Choose the folder of a bundle.")


def _check_format(number: float, folder: Path) -> None:
    if number > FORMAT:
        raise BundleError(
            f"{folder} has bundle format {number:g}; this program reads format {FORMAT} and older.",
            "Update the program, or get an older version of the model.",
        )
    if number != FORMAT:
        raise BundleError(f"{folder} has bundle format {number:g}, which does not exist.", GET_AGAIN)


def _build_metadata(content: _Content) -> Metadata:
    """The metadata, after the checks that concern several fields. Raises BundleError and DataError."""
    own = content.dca
    low, high = own.hu_window
    if low >= high:
        raise DataError("dca.hu_window", "is not a lower and a higher number")
    if any(side % 16 for side in own.patch) or math.prod(own.patch) > _MAX_PATCH_VOXELS:
        raise DataError("dca.patch", "is not a possible size: sides must be multiples of 16")
    axes = own.orientation
    if re.fullmatch("[RLAPSI]{3}", axes) is None or len({"RLAPSI".index(c) // 2 for c in axes}) != 3:
        raise DataError("dca.orientation", f"is '{axes[:20]}', not three directions such as RAS")
    vocabulary = _get_vocabulary(own.vocabulary)
    if max(own.partition.counts) > _MAX_COUNT:
        raise DataError("dca.partition", "is not based on possible voxel counts")
    labels = [organ.label for organ in vocabulary]
    if sorted(label for group in own.partition.owners for label in group) != labels:
        raise DataError("dca.partition", f"is not for the {len(vocabulary)} labels of {vocabulary.name}")
    # The network itself is not built here.
    network = load(_Network, own.network, "dca.network")
    if any(label > len(vocabulary) for row in network.owners for label in row):
        raise DataError("dca.network.owners", f"is not for the {len(vocabulary)} labels of {vocabulary.name}")
    if network.attended_patch is not None and network.attended_patch != own.patch:
        raise DataError("dca.network.attended_patch", "is not the model's patch")
    if own.scores is not None and (not own.scores.dice or not set(own.scores.dice) <= set(vocabulary.by_key)):
        raise DataError("dca.scores.dice", f"is not for organs of {vocabulary.name}")
    weights = check_weights(own.weights)
    if weights.bytes > compute_max_weight_bytes(own.network):
        raise DataError("dca.weights.bytes", f"is {weights.bytes}, more than this network has")
    return Metadata(
        name=content.name,
        description=content.description,
        version=content.version,
        authors=content.authors,
        copyright=content.copyright,
        vocabulary=vocabulary,
        spacing=own.spacing_mm,
        orientation=own.orientation,
        hu_window=own.hu_window,
        patch=own.patch,
        network=own.network,
        partition=own.partition,
        training_data=own.training_data,
        licence=own.licence,
        limits=own.limits,
        scores=own.scores,
        weights=weights,
        overlap=own.overlap,
        anti_aliasing=own.anti_aliasing,
    )


def compute_max_weight_bytes(options: Mapping[str, Any]) -> int:
    """An upper bound on the bytes of the weight file of a network with these options, at most a few times its size.

    It counts the convolutions of the encoder and of each decoder (see ``method.vnet``) and adds half as much again for
    everything else. Too large a file is thus refused before it is read, also in Slicer, which does not load the
    network.
    """
    filters = int(options.get("n_filters", 16))
    widths = [filters * 2**level for level in range(5)]
    stages = [row for row in options.get("n_stages", ()) if len(row) == 4] or [[_MAX_STAGES] * 4] * 3
    per_unit = [27 * width**2 for width in widths]
    encoder = 3 * sum(per_unit) + sum(16 * width**2 for width in widths)
    levels = list(zip(per_unit, widths, strict=True))[3::-1]
    decoders = [
        sum(number * unit + 16 * width**2 for number, (unit, width) in zip(row, levels, strict=True))
        for row in (*stages, (3, 3, 2, 1))
    ]
    if "attended_patch" in options:
        # Two blocks with linear layers between channels, and embeddings of windows.
        sides = math.prod(side // 16 for side in options["attended_patch"])
        encoder += 20 * widths[-1] ** 2 + 2 * sides**2
    members = int(options.get("members", 1))
    return min(6 * members * (encoder + sum(decoders)) + (2 << 20), _MAX_WEIGHT_BYTES)


def _get_vocabulary(part: _VocabularyPart) -> Vocabulary:
    if part.name not in VOCABULARIES:
        raise BundleError(
            f"The model segments organs of the vocabulary '{part.name}', which this program does not support.",
            f"Choose a model for {' or '.join(VOCABULARIES)}.",
        )
    vocabulary = VOCABULARIES[part.name]
    if [(organ.label, organ.key) for organ in part.organs] != [(organ.label, organ.key) for organ in vocabulary]:
        raise BundleError(
            f"The model numbers the organs of {part.name} differently from this program.",
            "Update the program, or get a version of the model made with it.",
        )
    return vocabulary


def check_weights(described: Weights) -> Weights:
    """The description of a weight file, from any bundle's metadata. Raises DataError unless it is a possible one."""
    weights = replace(described, sha256=described.sha256.lower())
    if weights.file.endswith((".pt", ".pth")):
        raise BundleError(
            f"The weights of the model are in {weights.file[:200]}, a file of torch.save, which can contain code. "
            "It was not opened.",
            f"Export the model again with this version (dca bundle export), or ask for a bundle with {WEIGHTS}.",
        )
    if weights.file != WEIGHTS:
        # No other name is allowed: a path that leaves the bundle would make the program read arbitrary files.
        raise DataError("dca.weights.file", f"is '{weights.file[:200]}', not {WEIGHTS}")
    if re.fullmatch("[0-9a-f]{64}", weights.sha256) is None:
        raise DataError("dca.weights.sha256", "is not a SHA-256")
    if not 0 < weights.bytes <= _MAX_WEIGHT_BYTES:
        raise DataError("dca.weights.bytes", f"is {weights.bytes}, which is not a possible size")
    if weights.dtype not in ("float16", "float32"):
        raise DataError("dca.weights.dtype", f"is '{weights.dtype[:40]}', not float16 or float32")
    return weights
