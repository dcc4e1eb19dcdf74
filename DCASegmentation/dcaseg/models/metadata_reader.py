"""Reading of metadata from JSON that may be damaged, older, newer, or of another program."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..json_io import parse_json
from ..method.log_gap import Partition
from ..organs import VOCABULARIES, Vocabulary
from .metadata import FORMAT, METADATA, OLD_WEIGHTS, WEIGHTS, MeasuredScores, Metadata, TrainingData, Weights
from .weight_files import GET_AGAIN, open_regular

MOST_METADATA_BYTES = 1 << 20
# Limits that no model of this program approaches, and that every computer can handle.
_MOST_WEIGHT_BYTES = 512 << 20
_MOST_FILTERS, _MOST_STAGES, _MOST_DILATION = 32, 8, 16
_LARGEST_PATCH_SIDE, _LARGEST_PATCH = 512, 1 << 26  # voxels
_MOST_OVERLAP = 0.95
_SPACING_MM = (0.2, 50.0)
_LARGEST_NUMBER = 1e15


def read_metadata(folder: Path) -> Metadata:
    """The metadata of the bundle in ``folder``. Raises BundleError with the problem."""
    _require_bundle(folder)
    with open_regular(folder, METADATA) as file:
        content = file.read(MOST_METADATA_BYTES + 1)
    return parse_metadata(content, folder)


def parse_metadata(raw: bytes, folder: Path) -> Metadata:
    """The metadata in ``raw``, the content of the metadata file of ``folder``. Raises BundleError."""
    if len(raw) > MOST_METADATA_BYTES:
        raise BundleError(f"The metadata of {folder} are larger than those of any model.", GET_AGAIN)
    try:
        content = parse_json(raw)
    except ValueError:
        raise BundleError(f"{folder / METADATA} cannot be read as JSON.", GET_AGAIN) from None
    if not isinstance(content, dict) or "dca" not in content:
        raise BundleError(
            f"{folder} is a MONAI bundle of another program: its metadata have no 'dca' part.",
            "Choose a bundle made by this program.",
        )
    fields = _Fields(content)
    own = fields.part("dca")
    _check_format(own.number("format"), folder)
    return _metadata(fields, own)


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


def _metadata(fields: _Fields, own: _Fields) -> Metadata:
    spacing = own.numbers("spacing_mm", 3)
    low, high = own.numbers("hu_window", 2)
    patch = own.numbers("patch", 3)
    orientation = own.text("orientation")
    # Older bundles do not state their overlap; they were run with half a side.
    overlap = own.number("overlap") if "overlap" in own.values else 0.5
    if not 0 <= overlap <= _MOST_OVERLAP:
        raise _wrong("dca.overlap", f"not a fraction from 0 to {_MOST_OVERLAP}")
    if (
        not all(_SPACING_MM[0] <= side <= _SPACING_MM[1] for side in spacing)
        or low >= high
        or not all(16 <= side <= _LARGEST_PATCH_SIDE and side % 16 == 0 for side in patch)
        or math.prod(patch) > _LARGEST_PATCH
    ):
        raise _wrong("spacing_mm, hu_window or patch", "impossible")
    if re.fullmatch("[RLAPSI]{3}", orientation) is None or len({"RLAPSI".index(c) // 2 for c in orientation}) != 3:
        raise _wrong("dca.orientation", f"'{orientation}', not three directions such as RAS")
    vocabulary = _vocabulary(own.part("vocabulary"))
    try:
        partition = Partition.from_json(own.part("partition").values)
    except ValueError as error:
        raise _wrong("dca.partition", str(error)[:200]) from None
    if max(partition.counts) > _LARGEST_NUMBER:
        raise _wrong("dca.partition", "not based on possible voxel counts")
    if sorted(label for group in partition.owners for label in group) != [organ.label for organ in vocabulary]:
        raise _wrong("dca.partition", f"not for the {len(vocabulary)} labels of {vocabulary.name}")
    network = _network(own.part("network"), len(vocabulary))
    weights = _weights(own.part("weights"))
    if weights.bytes > most_weight_bytes(network):
        raise _wrong("dca.weights.bytes", f"{weights.bytes}, more than this network has")
    return Metadata(
        name=fields.text("name"),
        description=fields.text("description"),
        version=fields.text("version"),
        authors=fields.text("authors"),
        copyright=fields.text("copyright"),
        vocabulary=vocabulary,
        spacing=(spacing[0], spacing[1], spacing[2]),
        orientation=orientation,
        hu_window=(low, high),
        patch=(int(patch[0]), int(patch[1]), int(patch[2])),
        network=network,
        partition=partition,
        training_data=tuple(_training_data(entry) for entry in own.parts("training_data")),
        licence=own.text("licence"),
        limits=tuple(str(sentence) for sentence in own.items("limits")),
        scores=None if own.item("scores") is None else _scores(own.part("scores"), vocabulary),
        weights=weights,
        overlap=overlap,
        # Older bundles were trained without the filter.
        anti_aliasing=own.values.get("anti_aliasing") is True,
    )


def _network(part: _Fields, n_labels: int) -> Mapping[str, Any]:
    """The options of the network, checked for type and size. The network itself is not built here."""

    def is_rows(value: Any, lowest: int, highest: int, most: int) -> bool:
        if not isinstance(value, list) or not all(isinstance(row, list) and len(row) <= most for row in value):
            return False
        return all(type(item) is int and lowest <= item <= highest for row in value for item in row)

    options = part.values
    most_experts = 8
    checks = {
        "owners": lambda value: is_rows(value, 1, n_labels, n_labels) and len(value) <= most_experts,
        "in_channels": lambda value: type(value) is int and value == 1,
        "n_filters": lambda value: type(value) is int and 1 <= value <= _MOST_FILTERS,
        "norm": lambda value: value in ("batch", "instance"),
        "n_stages": lambda value: is_rows(value, 1, _MOST_STAGES, 4) and len(value) <= most_experts,
        "dilations": lambda value: is_rows(value, 1, _MOST_DILATION, 4) and len(value) <= most_experts,
        "fusion": lambda value: isinstance(value, str),
        "aggregation": lambda value: isinstance(value, bool),
        "stitching": lambda value: isinstance(value, str),
        "dropout": lambda value: type(value) in (int, float) and 0 <= value < 1,
        "upsampling": lambda value: value in ("transposed", "transposed_icnr", "trilinear"),
        "residual": lambda value: isinstance(value, bool),
    }
    for name, value in options.items():
        if name not in checks:
            raise BundleError(f"The model's network options are wrong: '{name[:60]}' does not exist.", GET_AGAIN)
        if not checks[name](value):
            raise BundleError(f"The model's network options are wrong: {name} cannot be {str(value)[:60]}.", GET_AGAIN)
    return options


def most_weight_bytes(options: Mapping[str, Any]) -> int:
    """An upper bound on the bytes of the weight file of a network with these options, at most a few times its size.

    It counts the convolutions of the encoder and of each decoder (see ``method.vnet``) and adds half as much again for
    everything else. Too large a file is thus refused before it is read, also in Slicer, which does not load the
    network.
    """
    filters = int(options.get("n_filters", 16))
    widths = [filters * 2**level for level in range(5)]
    stages = [row for row in options.get("n_stages", ()) if len(row) == 4] or [[_MOST_STAGES] * 4] * 3
    per_unit = [27 * width**2 for width in widths]
    encoder = 3 * sum(per_unit) + sum(16 * width**2 for width in widths)
    levels = list(zip(per_unit, widths, strict=True))[3::-1]
    decoders = [
        sum(number * unit + 16 * width**2 for number, (unit, width) in zip(row, levels, strict=True))
        for row in (*stages, (3, 3, 2, 1))
    ]
    return min(6 * (encoder + sum(decoders)) + (2 << 20), _MOST_WEIGHT_BYTES)


def _vocabulary(part: _Fields) -> Vocabulary:
    name = part.text("name")
    if name not in VOCABULARIES:
        raise BundleError(
            f"The model segments organs of the vocabulary '{name}', which this program does not support.",
            f"Choose a model for {' or '.join(VOCABULARIES)}.",
        )
    vocabulary = VOCABULARIES[name]
    if [(organ.number("label"), organ.text("key")) for organ in part.parts("organs")] != [
        (organ.label, organ.key) for organ in vocabulary
    ]:
        raise BundleError(
            f"The model numbers the organs of {name} differently from this program.",
            "Update the program, or get a version of the model made with it.",
        )
    return vocabulary


def _training_data(part: _Fields) -> TrainingData:
    return TrainingData(
        name=part.text("name"),
        labelled=int(part.number("labelled")),
        unlabelled=int(part.number("unlabelled")),
        licence=part.text("licence"),
        source=part.text("source"),
        synthetic=part.values.get("synthetic") is True,
    )


def _scores(part: _Fields, vocabulary: Vocabulary) -> MeasuredScores:
    dice = part.part("dice")
    if not dice.values or not set(dice.values) <= set(vocabulary.by_key):
        raise _wrong("dca.scores.dice", f"not for organs of {vocabulary.name}")
    return MeasuredScores(
        data=part.text("data"),
        cases=int(part.number("cases")),
        dice={organ: dice.number(organ) for organ in dice.values},
        command=part.text("command"),
    )


def parse_weights(values: object) -> Weights:
    """The description of a weight file from any bundle's metadata. Raises BundleError unless it is a possible one."""
    if not isinstance(values, dict):
        raise _wrong("weights", "not an object")
    return _weights(_Fields(values, "weights"))


def _weights(part: _Fields) -> Weights:
    file, sha256, size, dtype = part.text("file"), part.text("sha256").lower(), part.number("bytes"), part.text("dtype")
    if file not in (WEIGHTS, OLD_WEIGHTS):
        # No other name is allowed: a path that leaves the bundle would make the program read arbitrary files.
        raise _wrong("dca.weights.file", f"'{file[:200]}', not {WEIGHTS}")
    if re.fullmatch("[0-9a-f]{64}", sha256) is None:
        raise _wrong("dca.weights.sha256", "not a SHA-256")
    if type(size) is not int or not 0 < size <= _MOST_WEIGHT_BYTES:
        raise _wrong("dca.weights.bytes", f"{str(size)[:40]}, which is not a possible size")
    if dtype not in ("float16", "float32"):
        raise _wrong("dca.weights.dtype", f"'{dtype[:40]}', not float16 or float32")
    return Weights(file, sha256, size, dtype)


class _Fields:
    """A JSON object whose fields must be present and of the right type; ``where`` is its location in the file."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self._where = where

    def item(self, key: str) -> Any:
        if key not in self.values:
            raise BundleError(f"The model's metadata lack '{self._name(key)}'.", GET_AGAIN)
        return self.values[key]

    def text(self, key: str) -> str:
        return self._typed(key, str, "not a text")

    def number(self, key: str) -> float:
        value = self.item(key)
        if not _is_number(value):
            raise _wrong(self._name(key), "not a number")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        values = self.items(key)
        if len(values) != count or not all(map(_is_number, values)):
            raise _wrong(self._name(key), f"not {count} numbers")
        return values

    def items(self, key: str) -> list[Any]:
        return self._typed(key, list, "not a list")

    def part(self, key: str) -> _Fields:
        return _Fields(self._typed(key, dict, "not an object"), self._name(key))

    def parts(self, key: str) -> list[_Fields]:
        entries = self.items(key)
        if not all(isinstance(entry, dict) for entry in entries):
            raise _wrong(self._name(key), "not a list of objects")
        return [_Fields(entry, f"{self._name(key)}[{index}]") for index, entry in enumerate(entries)]

    def _typed(self, key: str, expected: type, complaint: str) -> Any:
        value = self.item(key)
        if not isinstance(value, expected):
            raise _wrong(self._name(key), complaint)
        return value

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _wrong(name: str, complaint: str) -> BundleError:
    return BundleError(f"The model's metadata are wrong: {name} is {complaint}.", GET_AGAIN)
