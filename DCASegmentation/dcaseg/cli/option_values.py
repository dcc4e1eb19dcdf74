"""Options that several commands share, and parsers for option values such as ``1.5,1.5,3``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OutputError, UserError

# Headings of groups of options on help pages.
MODEL_PANEL = "Model"
OUTPUT_PANEL = "Output"
RUN_PANEL = "Run"

BundleOption = Annotated[
    str | None,
    typer.Option(help="Folder or name of the trained model. Default: the default model (see dca bundle info)."),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="How to run the network: eager (PyTorch), openvino, openvino-bf16, compile (torch.compile) or cuda-half. "
        "auto measures once which is fastest on this computer; measure repeats the measurement.",
        rich_help_panel=RUN_PANEL,
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="Device: auto, cpu, gpu, cuda, cuda:1 or mps.", rich_help_panel=RUN_PANEL)
]
PreprocessingOption = Annotated[
    str | None,
    typer.Option(
        help="How to prepare CTs. dca dataset presets lists the names.",
        rich_help_panel=MODEL_PANEL,
    ),
]
SpacingOption = Annotated[
    str | None, typer.Option(help="Voxel spacing of the model's grid in mm, as x,y,z.", rich_help_panel=MODEL_PANEL)
]


def parse_numbers(text: str, option: str, count: int = 3) -> tuple[float, ...]:
    """Parse ``count`` numbers separated by commas. Raises UserError for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise UserError(f"{option} '{text}' is not {count} numbers.", f"Write them like this: {option} 1.5,1.5,3.")
    return values


def parse_spacing(text: str, option: str = "--spacing") -> tuple[float, float, float]:
    """Parse a spacing (x, y, z) in mm. Raises UserError for anything but three positive numbers."""
    x, y, z = parse_numbers(text, option)
    if not min(x, y, z) > 0:
        raise UserError(f"{option} '{text}' is not a voxel spacing.", "Give three numbers above 0, in mm.")
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
            f"Give one side or three, each a multiple of 16 and at least {smallest}.",
        )
    depth, height, width = sides
    return depth, height, width


def require_new_file(path: Path, overwrite: bool) -> Path:
    """Return ``path`` if a file can be written there, and create missing parent folders.

    Commands call this before they start to work. Raises OutputError if ``path`` is a folder, exists without
    ``overwrite``, or if its parent folder cannot be created.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Give the name of a file.")
    if path.exists() and not overwrite:
        raise OutputError(f"The file {path} already exists.", "Choose another name, or add --overwrite.")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {path.parent} cannot be created: {error.strerror or error}.", "Choose another folder."
        ) from None
    return path


def grid_changes(preprocessing: str | None, spacing: str | None) -> dict[str, Any]:
    """Return the changes to ``TrainingOptions`` for --preprocessing and --spacing; none if both are None.

    ``spacing`` overrides that of the preset. Raises UserError for an unknown preset, or for a spacing together with a
    preset of fixed shape.
    """
    from ..training.options import GridOptions
    from ..training.options import preprocessing as find_preset

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
