"""What the values of options stand for: numbers such as ``1.5,1.5,3``, new files, models, and lists of cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, UserError, get_reason
from .console import warn

if TYPE_CHECKING:
    from ..models.bundle import Bundle
    from ..training.datalist import Entry


def parse_numbers(text: str, option: str, count: int = 3) -> tuple[float, ...]:
    """Parse ``count`` numbers separated by commas. Raises UserError for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(f"{option} '{text}' is not {count} numbers.", f"Write them like this: {option} 1.5,1.5,3.")
    return values


def parse_spacing(text: str, option: str = "--spacing") -> tuple[float, float, float]:
    """Parse a spacing (x, y, z) in mm. Raises UserError for anything but three positive numbers."""
    x, y, z = parse_numbers(text, option)
    if not min(x, y, z) > 0:
        raise UserError(f"{option} '{text}' is not a voxel spacing.", "Specify three numbers above 0, in mm.")
    return x, y, z


def parse_integers(text: str, option: str, example: str) -> tuple[int, ...]:
    """Parse any number of integers separated by commas. Raises UserError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{option} '{text}' is not a list of whole numbers.", f"Separate them with commas: {option} {example}."
        ) from None


def parse_list(text: str) -> tuple[str, ...]:
    """Split ``text`` at commas. Ignores surrounding spaces and empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_patch(text: str, option: str = "--patch", smallest: int = 16) -> tuple[int, int, int]:
    """Parse a patch (depth, height, width) in voxels from one number or three. Raises UserError for anything else."""
    sides = parse_integers(text, option, "96 or 96,96,96")
    if len(sides) == 1:
        sides = sides * 3
    if len(sides) != 3 or any(side < smallest or side % 16 for side in sides):
        raise UserError(
            f"{option} '{text}' is not a valid patch size.",
            f"Specify one side or three, each a multiple of 16 and at least {smallest}.",
        )
    depth, height, width = sides
    return depth, height, width


def require_new_files(files: Mapping[str, Path | None], overwrite: bool) -> None:
    """Check like ``require_new_file`` the files of several options (None: not given), which must be different ones."""
    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        require_new_file(path, overwrite)
        other = seen.setdefault(path.absolute(), option)
        if other != option:
            raise UserError(f"{other} and {option} name the same file, {path}.", "Use two different names.")


def require_new_file(path: Path, overwrite: bool) -> Path:
    """Return ``path`` if a file can be written there, and create missing parent folders.

    Commands call this before they start to work. Raises OutputError if ``path`` is a folder, exists without
    ``overwrite``, or if its parent folder cannot be created.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Specify the name of a file.")
    if path.exists() and not overwrite:
        raise OutputError(f"The file {path} already exists.", "Choose another name, or add --overwrite.")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {path.parent} cannot be created: {get_reason(error)}.", "Choose another folder."
        ) from None
    return path


def get_grid_changes(preprocessing: str | None, spacing: str | None) -> dict[str, Any]:
    """Return the changes to ``TrainingOptions`` for --preprocessing and --spacing; none if both are None.

    ``spacing`` overrides that of the preset. Raises UserError for an unknown preset, or for a spacing together with a
    preset of fixed shape.
    """
    from ..training.options import GridOptions
    from ..training.options import get_preprocessing as find_preset

    if preprocessing is None:
        return {} if spacing is None else {"grid": GridOptions(spacing=parse_spacing(spacing))}
    preset = find_preset(preprocessing)
    grid = preset.grid
    if spacing is not None:
        if grid.shape is not None:
            raise UserError(
                f"Preprocessing '{preprocessing}' resizes every CT to the same number of voxels, so --spacing cannot "
                "be set.",
                "Omit --spacing or --preprocessing.",
            )
        grid = replace(grid, spacing=parse_spacing(spacing))
    return {"grid": grid, **preset.changes}


def load_bundle(name: str | None) -> Bundle:
    """Load the bundle with this name or in this folder, or the default model for None. Raises BundleError."""
    from ..models.bundle import Bundle
    from ..models.store import find_bundle, find_default_bundle, find_hidden_bundle

    folder = find_default_bundle() if name is None else find_bundle(name)
    if (shipped := find_hidden_bundle(folder)) is not None and name != str(folder):
        warn(f"Using the model in {folder}, which hides the model of the same name in {shipped}.")
    return Bundle.load(folder)


def pair_up(first: list[Path], second: list[Path], option: str, second_option: str) -> list[tuple[Path, Path]]:
    """Pair the values of two options that are given equally often. Raises UserError if they are not."""
    if len(first) != len(second):
        raise UserError(
            f"The number of {option} options is {len(first)}, that of {second_option} options {len(second)}.",
            f"Specify one {second_option} for each {option}.",
        )
    return list(zip(first, second, strict=True))


def get_labeled_entries(cts: list[Path], labels: list[Path], data: Path | None, group: str) -> list[Entry]:
    """Return the labeled CTs for scoring: ``cts`` with ``labels``, and those in ``group`` of the list ``data``.

    Raises UserError if the group does not exist or has no labeled case.
    """
    from ..training.datalist import Entry, read_datalist, require_files

    entries = [Entry(ct, label) for ct, label in pair_up(cts, labels, "--ct", "--labels")]
    if data is None:
        return entries
    if group not in ("test", "validation", "training"):
        raise UserError(f"The group '{group}' does not exist.", "Choose test, validation or training.")
    datalist = read_datalist(data)
    require_files(datalist)
    listed = [entry for entry in dict(datalist.iter_groups())[group] if entry.label is not None]
    if not listed:
        raise UserError(f"{data} has no labeled case in the group '{group}'.", "Choose another --group.")
    return entries + listed
