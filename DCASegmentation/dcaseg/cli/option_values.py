"""Values of options: numbers with commas such as ``1.5,1.5,3``, patches, and how CTs are prepared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OutputError, UserError

BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="What runs the network: eager (PyTorch), openvino, compile (torch.compile) or cuda-half. auto takes the "
        "fastest on this computer, measured once; measure measures again.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, gpu, cuda, cuda:1 or mps.")]


def numbers(text: str, option: str, count: int = 3) -> tuple[float, ...]:
    """``count`` numbers. Raises UserError for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise UserError(f"{option} '{text}' is not {count} numbers.", f"Write it like {option} 1.5,1.5,3.")
    return values


def parse_spacing(text: str, option: str = "--spacing") -> tuple[float, float, float]:
    """Spacing (x, y, z) in mm. Raises UserError for anything but three positive numbers."""
    x, y, z = numbers(text, option)
    if not min(x, y, z) > 0:
        raise UserError(f"{option} '{text}' is no voxel spacing.", "Give three numbers above 0, in mm.")
    return x, y, z


def whole_numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    """Any count of whole numbers. Raises UserError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{option} '{text}' is not whole numbers with commas.", f"Write it like {option} {example}."
        ) from None


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them; blanks around them do not count."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def new_file(path: Path, overwrite: bool) -> Path:
    """``path``, if a file may be written there. Makes missing folders. Raises OutputError before any work is done."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Give the name of a file.")
    if path.exists() and not overwrite:
        raise OutputError(f"The file {path} exists already.", "Choose another name, or add --overwrite.")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {path.parent} cannot be made: {error.strerror or error}.", "Choose another one."
        ) from None
    return path


def patch(text: str, option: str = "--patch", smallest: int = 16) -> tuple[int, int, int]:
    """A patch (depth, height, width) in voxels from one number or three. Raises UserError for anything else."""
    sides = whole_numbers(text, option, "96 or 96,96,96")
    if len(sides) == 1:
        sides = sides * 3
    if len(sides) != 3 or any(side < smallest or side % 16 for side in sides):
        raise UserError(
            f"{option} '{text}' is no patch.", f"Give one or three sides, multiples of 16 from {smallest} on."
        )
    depth, height, width = sides
    return depth, height, width


PreprocessingOption = Annotated[
    str | None, typer.Option(help="How CTs are prepared; dca dataset presets lists the names.")
]
SpacingOption = Annotated[str | None, typer.Option(help="Voxel size of the model's grid in mm, as x,y,z.")]


def changes_of(preprocessing: str | None, spacing: str | None) -> dict[str, Any]:
    """Changes to a run's options; none where neither is given. A spacing takes the place of the preset's own.

    Raises UserError for a name there is not, or a spacing beside a preset of fixed shape.
    """
    from ..training.options import GridOptions
    from ..training.options import preprocessing as preset_of

    if preprocessing is None:
        return {} if spacing is None else {"grid": GridOptions(spacing=parse_spacing(spacing))}
    preset = preset_of(preprocessing)
    grid = preset.grid
    if spacing is not None:
        if grid.shape is not None:
            raise UserError(
                f"Preprocessing '{preprocessing}' gives every CT the same number of voxels, so it has no --spacing.",
                "Leave one of them out.",
            )
        grid = replace(grid, spacing=parse_spacing(spacing))
    return {"grid": grid, **preset.changes}
