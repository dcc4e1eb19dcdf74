"""Metadata from JSON that may be damaged, old, new, or of another program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..method.partition import Partition
from ..organs import VOCABULARIES, Vocabulary
from .metadata import FORMAT, METADATA, WEIGHTS, MeasuredScores, Metadata, TrainingData, Weights

GET_AGAIN = "Get the model bundle again."


def read_metadata(folder: Path) -> Metadata:
    """The metadata of the bundle in ``folder``. Raises BundleError saying what is wrong with it."""
    path = _metadata_file(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BundleError(f"{path} cannot be read as JSON.", GET_AGAIN) from None
    if not isinstance(content, dict) or "dca" not in content:
        raise BundleError(
            f"{folder} is a MONAI bundle of another program: its metadata have no part 'dca'.",
            "Choose a bundle made by this program.",
        )
    fields = _Fields(content)
    own = fields.part("dca")
    _check_format(own.number("format"), folder)
    return _metadata(fields, own)


def _metadata_file(folder: Path) -> Path:
    if folder.is_file():
        if folder.suffix.lower() == ".zip":
            raise BundleError(f"{folder} is a zip file.", "Unpack it and give the folder in it.")
        raise BundleError(f"{folder} is a file; a model bundle is a folder.", f"Give the folder that has {METADATA}.")
    if not folder.is_dir():
        raise BundleError(f"There is no model bundle {folder}.", "Check the path.")
    path = folder / METADATA
    if not path.is_file():
        raise BundleError(f"{folder} is no model bundle: it has no {METADATA}.", "Choose the folder of a bundle.")
    return path


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
    patch = [int(side) for side in own.numbers("patch", 3)]
    orientation = own.text("orientation")
    # Bundles from before it was a model's own were run with half a side.
    overlap = own.number("overlap") if "overlap" in own.values else 0.5
    if not 0 <= overlap < 1:
        raise _wrong("dca.overlap", "no share of a window's side")
    if min(spacing) <= 0 or low >= high or min(patch) < 16 or any(side % 16 for side in patch):
        raise _wrong("spacing_mm, hu_window or patch", "no values a model can have")
    if re.fullmatch("[RLAPSI]{3}", orientation) is None or len({"RLAPSI".index(c) // 2 for c in orientation}) != 3:
        raise _wrong("dca.orientation", f"'{orientation}', not three directions such as RAS")
    vocabulary = _vocabulary(own.part("vocabulary"))
    try:
        partition = Partition.from_json(own.part("partition").values)
    except ValueError as error:
        raise _wrong("dca.partition", str(error)) from None
    if sorted(label for group in partition.owners for label in group) != [organ.label for organ in vocabulary]:
        raise _wrong("dca.partition", f"not of the {len(vocabulary)} labels of {vocabulary.name}")
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
        patch=(patch[0], patch[1], patch[2]),
        network=own.part("network").values,
        partition=partition,
        training_data=tuple(_training_data(entry) for entry in own.parts("training_data")),
        licence=own.text("licence"),
        limits=tuple(str(sentence) for sentence in own.items("limits")),
        scores=None if own.item("scores") is None else _scores(own.part("scores"), vocabulary),
        weights=_weights(own.part("weights")),
        overlap=overlap,
        # Bundles from before there was a filter were trained without it.
        anti_aliasing=own.values.get("anti_aliasing") is True,
    )


def _vocabulary(part: _Fields) -> Vocabulary:
    name = part.text("name")
    if name not in VOCABULARIES:
        raise BundleError(
            f"The model segments organs of the vocabulary '{name}', which this program does not know.",
            f"Choose a model of: {', '.join(VOCABULARIES)}.",
        )
    vocabulary = VOCABULARIES[name]
    if [(organ.number("label"), organ.text("key")) for organ in part.parts("organs")] != [
        (organ.label, organ.key) for organ in vocabulary
    ]:
        raise BundleError(
            f"The model numbers the organs of {name} otherwise than this program.",
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
        raise _wrong("dca.scores.dice", f"not of organs of {vocabulary.name}")
    return MeasuredScores(
        data=part.text("data"),
        cases=int(part.number("cases")),
        dice={organ: dice.number(organ) for organ in dice.values},
        command=part.text("command"),
    )


def _weights(part: _Fields) -> Weights:
    if part.text("file") != WEIGHTS:
        # Nothing else: a path that leaves the bundle would have the program read any file.
        raise _wrong("dca.weights.file", f"'{part.text('file')}', not {WEIGHTS}")
    return Weights(WEIGHTS, part.text("sha256").lower(), int(part.number("bytes")), part.text("dtype"))


class _Fields:
    """A JSON object whose fields must be there and of the right kind; ``where`` is its place in the file."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self._where = where

    def item(self, key: str) -> Any:
        if key not in self.values:
            raise BundleError(f"The model's metadata lack '{self._name(key)}'.", GET_AGAIN)
        return self.values[key]

    def text(self, key: str) -> str:
        return self._typed(key, str, "no text")

    def number(self, key: str) -> float:
        value = self.item(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(self._name(key), "no number")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        values = self.items(key)
        if len(values) != count or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise _wrong(self._name(key), f"not {count} numbers")
        return values

    def items(self, key: str) -> list[Any]:
        return self._typed(key, list, "no list")

    def part(self, key: str) -> _Fields:
        return _Fields(self._typed(key, dict, "no object"), self._name(key))

    def parts(self, key: str) -> list[_Fields]:
        entries = self.items(key)
        if not all(isinstance(entry, dict) for entry in entries):
            raise _wrong(self._name(key), "no list of objects")
        return [_Fields(entry, f"{self._name(key)}[{index}]") for index, entry in enumerate(entries)]

    def _typed(self, key: str, kind: type, complaint: str) -> Any:
        value = self.item(key)
        if not isinstance(value, kind):
            raise _wrong(self._name(key), complaint)
        return value

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _wrong(name: str, complaint: str) -> BundleError:
    return BundleError(f"The model's metadata are wrong: {name} is {complaint}.", GET_AGAIN)
