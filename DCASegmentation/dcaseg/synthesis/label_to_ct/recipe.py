"""A recipe: everything that one synthetic CT is made from, as plain data."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError

# Goes up when the same recipe would give other voxels or has other fields.
RECIPE_VERSION = 1

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Deformation:
    """How the body differs from its label map.

    ``scale``: size along x, y, z; ``degrees``: rotation about them; ``elastic``: SD in mm of random bending over the
    lengths ``geometry.ELASTIC_MM``; ``blend``: how far the anatomy goes toward others, by their names (1: all the way);
    ``growth``: mm by which the surface of an organ moves out; ``shift``: mm (x, y, z) by which an organ is displaced.
    """

    scale: Triple = (1.0, 1.0, 1.0)
    degrees: Triple = (0.0, 0.0, 0.0)
    elastic: Triple = (0.0, 0.0, 0.0)
    blend: Mapping[str, float] = field(default_factory=dict)
    growth: Mapping[str, float] = field(default_factory=dict)
    shift: Mapping[str, Triple] = field(default_factory=dict)


@dataclass(frozen=True)
class Filling:
    """What the stretches of a lumen hold: ``content`` in HU up to the height ``level`` (0: back, 1: front; 2: all of
    it), and what lies ``above`` it, in HU. One number for each stretch."""

    content: tuple[float, ...]
    level: tuple[float, ...]
    above: tuple[float, ...]


@dataclass(frozen=True)
class Lesions:
    """Cysts or metastases of ``hu`` and about ``size_mm``; the higher the ``threshold`` (SD), the fewer."""

    hu: float
    size_mm: float
    threshold: float


@dataclass(frozen=True)
class Appearance:
    """CT numbers of the tissues, by name: ``hu``, SD of the variation (``texture``), share and CT number of the small
    ``vessels`` in them. ``muscle_mm`` and ``fat_mm``: layers around the trunk. ``fillings`` by lumen."""

    phase: str
    hu: Mapping[str, float]
    texture: Mapping[str, float]
    vessels: Mapping[str, float]
    vessel_hu: Mapping[str, float]
    muscle_mm: float
    fat_mm: float
    fillings: Mapping[str, Filling] = field(default_factory=dict)
    effusion: float | None = None
    lesions: Lesions | None = None


@dataclass(frozen=True)
class FieldOfView:
    """What is scanned: ``start`` (x, y, z), the center of the first voxel, and ``extent``, in mm from the middle of
    the trunk; a circle of ``radius_mm`` around ``middle`` (x, y) outside of which the scanner shows air."""

    start: Triple
    extent: Triple
    radius_mm: float | None = None
    middle: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scanner:
    """``slice_mm``: thickness and distance of slices; ``noise_hu``: SD in a voxel of 3 mm, of which the share
    ``correlated`` is smooth; ``blur``: share of itself a voxel gives to its neighbors in the plane (negative
    sharpens); HU are multiplied by ``gain`` and ``offset_hu`` is added."""

    slice_mm: float = 3.0
    noise_hu: float = 10.0
    correlated: float = 0.3
    blur: float = 0.1
    gain: float = 1.0
    offset_hu: float = 0.0


@dataclass(frozen=True)
class Table:
    """A curved board ``gap_mm`` from the skin, of ``radius_mm`` and ``thickness_mm``, with its ``skin_hu`` and
    ``core_hu``."""

    gap_mm: float
    radius_mm: float
    thickness_mm: float
    skin_hu: float
    core_hu: float


@dataclass(frozen=True)
class Arm:
    """An arm at ``center`` (x, y) in mm in the plane z = 0, which moves by ``lean`` (x, y) for each mm of z."""

    center: tuple[float, float]
    lean: tuple[float, float]
    thickness: float
    two_bones: bool


@dataclass(frozen=True)
class Recipe:
    """One synthetic CT. ``seed`` is that of all random fields; ``anatomy`` the name of the label map; ``missing`` the
    organs (keys of AMOS) that were taken out; ``prone`` turns gravity and the table around. Distances in mm from the
    middle of the trunk, x to the right, y to the front, z to the head."""

    seed: int
    anatomy: str
    deformation: Deformation
    appearance: Appearance
    field_of_view: FieldOfView
    scanner: Scanner = Scanner()
    table: Table | None = None
    arms: tuple[Arm, ...] = ()
    missing: tuple[str, ...] = ()
    prone: bool = False
    version: int = RECIPE_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain data that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Recipe:
        """The recipe in ``data``. Raises UserError for what is no recipe or is one of another version."""
        if not isinstance(data, Mapping) or "version" not in data:
            raise UserError(
                "This is not a recipe.", "A recipe is a JSON object with a version; dca synthesize writes them."
            )
        version = data["version"]
        if version != RECIPE_VERSION:
            newer = isinstance(version, int) and version > RECIPE_VERSION
            raise UserError(
                f"The recipe has version {version}, this program reads version {RECIPE_VERSION}.",
                "Update the program." if newer else "Make the recipe again with dca synthesize.",
            )
        try:
            return typing.cast(Recipe, _load(cls, data, "recipe"))
        except (TypeError, ValueError) as error:
            raise UserError(f"The recipe cannot be used: {error}.", "Make it again with dca synthesize.") from None


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file. Raises UserError if it cannot be read."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).", "Give a recipe.json of dca synthesize.") from None
    return Recipe.from_json(data)


def _load(kind: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as ``kind``: a dataclass, number, text, tuple, mapping or one of several."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is not an object")
        kinds = typing.get_type_hints(kind)
        if unknown := sorted(set(value) - set(kinds)):
            raise ValueError(f"{where} has the unknown field {unknown[0]!r}")
        return kind(**{name: _load(kinds[name], each, f"{where}.{name}") for name, each in value.items()})  # type: ignore[operator]
    if origin is types.UnionType:
        if value is None and type(None) in inner:
            return None
        return _load(next(each for each in inner if each is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            raise ValueError(f"{where} is not a list of the right length")
        kinds_of = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        pairs = enumerate(zip(kinds_of, value, strict=True))
        return tuple(_load(each, item, f"{where}[{i}]") for i, (each, item) in pairs)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is not an object")
        return {str(key): _load(inner[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is not of the type {kind.__name__}")
    if kind is float and not abs(value) < 1e9:
        raise ValueError(f"{where} is not a finite number")
    return value
