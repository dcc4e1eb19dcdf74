"""An anatomy as anyone can give it: a folder with a label map and a table of its names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ...errors import UserError
from ...imaging.grid import canonical_view
from ...imaging.readers import read_labels
from ...json_io import read_json

SIDECAR = "anatomy.json"
_MAPS = ("*.nii.gz", "*.nii", "*.nrrd", "*.nhdr", "*.mha", "*.mhd")
_TABLES = ("*.tsv", "*.ctbl", "*.txt", "*.csv")
_FORMAT = (
    f"Give a folder with one label map, a table of its names (label_table.tsv or a .ctbl), and maybe {SIDECAR}; "
    "see dca synthesize --help."
)

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Part:
    """A part of a structure under a name of its own: its voxels inside one of ``boxes``, index ranges (x, y, z) in the
    file's order, last index left out."""

    name: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Sidecar:
    """What the files themselves do not say: ``spacing`` (x, y, z) in mm where the header's is wrong, other ``names``
    for structures, and ``parts`` of structures that hold several organs."""

    spacing: tuple[float, float, float] | None = None
    names: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sidecar:
        spacing = data.get("spacing")
        parts = {
            name: tuple(Part(part["name"], tuple(_box(box) for box in part["boxes"])) for part in given)
            for name, given in data.get("parts", {}).items()
        }
        return cls(None if spacing is None else (spacing[0], spacing[1], spacing[2]), data.get("names", {}), parts)


def _box(ranges: list[list[int]]) -> Box:
    (x0, x1), (y0, y1), (z0, z1) = ranges
    return (x0, x1), (y0, y1), (z0, z1)


@dataclass(frozen=True)
class LabelMap:
    """``voxels`` (z, y, x), axes to the right, the front and the head; ``spacing`` (x, y, z) in mm; ``names`` of the
    numbers in it."""

    name: str
    voxels: np.ndarray
    spacing: tuple[float, float, float]
    names: dict[int, str]


def read_label_map(folder: Path, sidecar: Sidecar | None = None) -> LabelMap:
    """Reads the label map in ``folder``. What ``anatomy.json`` there says comes before ``sidecar``, and that before
    what is known of published maps. Raises UserError where the folder is no anatomy, ImageError for a bad image."""
    folder = Path(folder)
    image_path, table_path = _only(folder, _MAPS, "label map"), _table(folder)
    own = folder / SIDECAR
    if own.exists():
        sidecar = _read_sidecar(own)
    elif sidecar is None:
        sidecar = _published(table_path)
    names = {number: sidecar.names.get(name, name) for number, name in read_names(table_path).items()}
    image = read_labels(image_path)
    if sidecar.spacing is not None:
        image.SetSpacing(sidecar.spacing)
    voxels = sitk.GetArrayFromImage(image)
    for whole, parts in sidecar.parts.items():
        voxels, names = _divided(voxels, names, whole, parts)
    view = canonical_view(voxels, image, "RAS")
    # The view's axes are the image's in another order: each index axis has the step of the world axis nearest to it.
    axes = np.abs(np.reshape(image.GetDirection(), (3, 3)))
    steps = np.array(image.GetSpacing())[axes.argmax(axis=1)]
    return LabelMap(folder.name, np.ascontiguousarray(view), (float(steps[0]), float(steps[1]), float(steps[2])), names)


def read_names(path: Path) -> dict[int, str]:
    """Numbers and names from the first two columns of a table; lines that start with no number are passed over."""
    names: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        columns = line.split("\t") if "\t" in line else line.split("," if "," in line else None)
        if len(columns) > 1 and columns[0].strip().isdigit():
            names[int(columns[0])] = columns[1].strip().strip('"')
    if not names:
        raise UserError(f"{path} names no structures.", "Its lines should hold a number and a name.")
    return names


def _divided(
    voxels: np.ndarray, names: dict[int, str], whole: str, parts: tuple[Part, ...]
) -> tuple[np.ndarray, dict[int, str]]:
    number = next((n for n, name in names.items() if name == whole), None)
    if number is None:
        raise UserError(f"The label map has no structure {whole}.", f"Correct its parts in {SIDECAR}.")
    voxels, names = voxels.astype(np.uint16), dict(names)
    for part in parts:
        new = max(max(names), int(voxels.max())) + 1
        names[new] = part.name
        for (x0, x1), (y0, y1), (z0, z1) in part.boxes:
            block = voxels[z0:z1, y0:y1, x0:x1]
            block[block == number] = new
    return voxels, names


def _only(folder: Path, patterns: tuple[str, ...], what: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", _FORMAT)
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    labels = [path for path in found if "label" in path.name.lower() or "seg" in path.name.lower()]
    found = labels if len(found) > 1 and labels else found
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found) or 'no'} {what}{'s' if len(found) > 1 else ''}.", _FORMAT)
    return found[0]


def _table(folder: Path) -> Path:
    for pattern in _TABLES:
        for path in sorted(folder.glob(pattern)):
            if path.name.lower() not in ("source.txt", "readme.txt", "license.txt"):
                return path
    raise UserError(f"{folder} holds no table of names.", _FORMAT)


def _read_sidecar(path: Path) -> Sidecar:
    try:
        return Sidecar.from_json(read_json(path))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} cannot be used ({error}).", 'Give for instance {"spacing": [1.4, 1.4, 3]}.') from None


def _published(table: Path) -> Sidecar:
    """What is known of label maps that are published with a mistake, by the name of their table."""
    return _PUBLISHED.get(table.name, Sidecar())


# The SPL abdominal atlas: the header's spacing is wrong (lumbar vertebrae are 12 slices apart; kidneys of 210 ml
# follow from this one), and one number stands for the gullet, the stomach and the duodenum.
_PUBLISHED = {
    "AbdominalAtlasColors.ctbl": Sidecar(
        spacing=(1.4, 1.4, 3.0),
        parts={
            "stomach_and_duodenum": (
                Part("esophagus", (((0, 256), (0, 256), (0, 14)),)),
                Part(
                    "duodenum",
                    (((0, 98), (0, 256), (25, 113)), ((0, 256), (0, 137), (39, 113)), ((0, 256), (0, 256), (48, 113))),
                ),
                Part("stomach", (((0, 256), (0, 256), (0, 113)),)),
            )
        },
    )
}
