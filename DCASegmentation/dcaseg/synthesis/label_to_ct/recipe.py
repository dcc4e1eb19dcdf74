"""A recipe: the complete description of a synthetic CT as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError, get_reason
from ...json_io import DataError, load, read_json

# Increased whenever the same recipe would give different voxels, or the fields change.
RECIPE_VERSION = 1

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Deformation:
    """The differences between the body and its label map.

    ``scale`` is the size along x, y, z, ``degrees`` the rotation about them. ``elastic`` is the SD in mm of random
    deformation over the lengths ``geometry.ELASTIC_MM``. ``blend`` maps names of other anatomies to weights (1: the
    other's shape). ``growth`` maps organs to the distance in mm by which their surface moves outward, ``shift`` to
    their displacement (x, y, z) in mm.
    """

    scale: Triple = (1.0, 1.0, 1.0)
    degrees: Triple = (0.0, 0.0, 0.0)
    elastic: Triple = (0.0, 0.0, 0.0)
    blend: Mapping[str, float] = field(default_factory=dict)
    growth: Mapping[str, float] = field(default_factory=dict)
    shift: Mapping[str, Triple] = field(default_factory=dict)


@dataclass(frozen=True)
class Filling:
    """The filling of the stretches of a lumen, with a number for each stretch.

    ``content`` (HU) fills it up to the height ``level`` (0: back, 1: front; 2: completely), ``above`` (HU) the rest.
    """

    content: tuple[float, ...]
    level: tuple[float, ...]
    above: tuple[float, ...]


@dataclass(frozen=True)
class Lesions:
    """Cysts or metastases with ``hu`` and a size of about ``size_mm``. A higher ``threshold`` (SD) gives fewer."""

    hu: float
    size_mm: float
    threshold: float


@dataclass(frozen=True)
class Appearance:
    """The appearance of the tissues.

    By tissue name: the CT number ``hu``, the SD of its variation ``texture`` (HU), and the density ``vessels`` (0 to 1)
    and CT number ``vessel_hu`` of small vessels. ``muscle_mm`` and ``fat_mm`` are the thickness of the layers around
    the trunk. ``fillings`` are by lumen. ``effusion`` is the level of pleural fluid (0: back, 1: front).
    """

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
    """The scanned region, in mm from the middle of the trunk.

    ``start`` (x, y, z) is the center of the first voxel, ``extent`` the size. Outside the circle with ``radius_mm``
    around ``middle`` (x, y), the scan shows air.
    """

    start: Triple
    extent: Triple
    radius_mm: float | None = None
    middle: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scanner:
    """The properties of a scanner.

    ``slice_mm`` is the thickness and distance of slices, ``noise_hu`` the SD of noise in a 3 mm voxel, ``correlated``
    its smooth fraction, ``blur`` the fraction of its value that a voxel gives to its neighbors in the plane (negative:
    sharpens). HU are multiplied by ``gain``, then ``offset_hu`` is added.
    """

    slice_mm: float = 3.0
    noise_hu: float = 10.0
    correlated: float = 0.3
    blur: float = 0.1
    gain: float = 1.0
    offset_hu: float = 0.0


@dataclass(frozen=True)
class Table:
    """A curved board at a distance of ``gap_mm`` from the skin, with ``radius_mm`` and ``thickness_mm``.

    ``skin_hu`` is the CT number of its surface layer, ``core_hu`` that of its core.
    """

    gap_mm: float
    radius_mm: float
    thickness_mm: float
    skin_hu: float
    core_hu: float


@dataclass(frozen=True)
class Arm:
    """An arm with its ``center`` (x, y) in mm in the plane z = 0, shifted by ``lean`` (x, y) per mm of z.

    ``thickness`` is relative to an average arm; ``two_bones`` is True for a forearm.
    """

    center: tuple[float, float]
    lean: tuple[float, float]
    thickness: float
    two_bones: bool


@dataclass(frozen=True)
class Recipe:
    """The description of a synthetic CT.

    ``seed`` is the seed of all random fields, ``anatomy`` the name of the label map, ``missing`` the keys of removed
    organs (AMOS). ``prone`` reverses gravity and the side of the table. Positions are in mm from the middle of the
    trunk, with x to the right, y to the front and z to the head.
    """

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
        """The recipe as plain data for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Recipe:
        """Read a recipe from plain data. Raises UserError if it is not a recipe or has another version."""
        if not isinstance(data, Mapping) or "version" not in data:
            raise UserError("The file is not a recipe.", "Specify a recipe.json that dca synthesize wrote.")
        version = data["version"]
        if version != RECIPE_VERSION:
            newer = isinstance(version, int) and version > RECIPE_VERSION
            raise UserError(
                f"The recipe has version {version}, but this program reads version {RECIPE_VERSION}.",
                "Update the program." if newer else "Create the recipe again with dca synthesize.",
            )
        try:
            return load(cls, data, "recipe")
        except DataError as error:
            raise UserError(f"The recipe is invalid: {error}.", "Create it again with dca synthesize.") from None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file. Raises UserError if it cannot be read or is not a recipe."""
    try:
        data = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({get_reason(error)}).", "Specify a recipe.json that dca synthesize wrote."
        ) from None
    return Recipe.from_json(data)
