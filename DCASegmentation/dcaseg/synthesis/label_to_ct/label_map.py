"""Reads an anatomy from a folder with a label map and a table of its names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ...errors import UserError
from ...imaging.grid import get_canonical_view
from ...imaging.readers import read_labels
from ...json_io import load, read_json
from ...option_fields import option

SIDECAR = "anatomy.json"
_MAPS = ("*.nii.gz", "*.nii", "*.nrrd", "*.nhdr", "*.mha", "*.mhd")
_TABLES = ("*.tsv", "*.ctbl", "*.txt", "*.csv")
_FORMAT = (
    f"Specify a folder with a label map, a table of its names (label_table.tsv or a .ctbl), and optionally {SIDECAR}; "
    "see dca synthesize --help."
)

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Part:
    """A part of a structure with its own name: its voxels inside any of ``boxes``.

    A box is a half-open index range for each of x, y and z, in the order of the file.
    """

    name: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Sidecar:
    """Corrections to a label map and its table.

    ``spacing`` (x, y, z) in mm replaces a wrong one in the header, ``names`` renames structures, and ``parts`` divides
    structures that contain several organs.
    """

    spacing: tuple[float, float, float] | None = option(None, minimum=0.02, maximum=50.0)
    names: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelMap:
    """A label map in RAS orientation.

    ``voxels`` is (z, y, x) with axes to the head, the front and the right, ``spacing`` is (x, y, z) in mm, ``names``
    maps label numbers to names.
    """

    name: str
    voxels: np.ndarray
    spacing: tuple[float, float, float]
    names: dict[int, str]


def read_label_map(folder: Path, sidecar: Sidecar | None = None) -> LabelMap:
    """Read the label map in ``folder``.

    An ``anatomy.json`` in the folder takes precedence over ``sidecar``, and this over the known corrections of
    published label maps. Raises UserError if the folder is not an anatomy, and ImageError for an invalid image.
    """
    folder = Path(folder)
    image_path, table_path = _find_single_file(folder, _MAPS, "label map"), _find_table(folder)
    own = folder / SIDECAR
    if own.exists():
        sidecar = _read_sidecar(own)
    elif sidecar is None:
        sidecar = _get_known_corrections(table_path)
    names = {number: sidecar.names.get(name, name) for number, name in read_names(table_path).items()}
    image = read_labels(image_path)
    if sidecar.spacing is not None:
        image.SetSpacing(sidecar.spacing)
    voxels = sitk.GetArrayFromImage(image)
    for whole, parts in sidecar.parts.items():
        voxels, names = _split_structure(voxels, names, whole, parts)
    view = get_canonical_view(voxels, image, "RAS")
    # The view has the image's axes in another order, so each world axis gets the step of the nearest index axis.
    axes = np.abs(np.reshape(image.GetDirection(), (3, 3)))
    steps = np.array(image.GetSpacing())[axes.argmax(axis=1)]
    return LabelMap(folder.name, np.ascontiguousarray(view), (float(steps[0]), float(steps[1]), float(steps[2])), names)


def read_names(path: Path) -> dict[int, str]:
    """Read numbers and names from the first two columns of a table. Lines that do not start with a number are skipped.

    Raises UserError if no line has a number and a name.
    """
    names: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        columns = line.split("\t") if "\t" in line else line.split("," if "," in line else None)
        number = columns[0].strip() if columns else ""
        # Labels have at most five digits; isdigit() also accepts characters that int() does not.
        if len(columns) > 1 and len(number) <= 9 and number.isdecimal():
            names[int(columns[0])] = columns[1].strip().strip('"')
    if not names:
        raise UserError(f"{path} names no structures.", "Specify a table with a number and a name in each line.")
    return names


def _split_structure(
    voxels: np.ndarray, names: dict[int, str], whole: str, parts: tuple[Part, ...]
) -> tuple[np.ndarray, dict[int, str]]:
    number = next((n for n, name in names.items() if name == whole), None)
    if number is None:
        raise UserError(f"The label map has no structure named {whole}.", f"Correct the parts in {SIDECAR}.")
    voxels, names = voxels.astype(np.uint16), dict(names)
    for part in parts:
        new = max(max(names), int(voxels.max())) + 1
        names[new] = part.name
        for (x0, x1), (y0, y1), (z0, z1) in part.boxes:
            block = voxels[z0:z1, y0:y1, x0:x1]
            block[block == number] = new
    return voxels, names


def _find_single_file(folder: Path, patterns: tuple[str, ...], what: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.", _FORMAT)
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    labels = [path for path in found if "label" in path.name.lower() or "seg" in path.name.lower()]
    found = labels if len(found) > 1 and labels else found
    if len(found) != 1:
        count = f"{len(found)} {what}s, not 1" if found else f"no {what}"
        raise UserError(f"{folder} contains {count}.", _FORMAT)
    return found[0]


def _find_table(folder: Path) -> Path:
    for pattern in _TABLES:
        for path in sorted(folder.glob(pattern)):
            if path.name.lower() not in ("source.txt", "readme.txt", "license.txt"):
                return path
    raise UserError(f"{folder} contains no table of names.", _FORMAT)


def _read_sidecar(path: Path) -> Sidecar:
    try:
        return load(Sidecar, read_json(path), ignore_unknown=True)
    except ValueError as error:
        raise UserError(
            f"{path} is invalid ({error}).", 'Correct it; an example is {"spacing": [1.4, 1.4, 3]}.'
        ) from None


def _get_known_corrections(table: Path) -> Sidecar:
    """Known corrections of published label maps, by the name of their table."""
    return _PUBLISHED.get(table.name, Sidecar())


# The SPL abdominal atlas: the spacing in the header is wrong (lumbar vertebrae are 12 slices apart; with this spacing
# the kidneys have 210 ml), and one label stands for esophagus, stomach and duodenum.
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
