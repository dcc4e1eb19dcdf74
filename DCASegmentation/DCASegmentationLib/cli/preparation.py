"""How CTs are prepared, from the options of a command."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from ..errors import UserError
from .values import spacing as spacing_of

PreprocessingOption = Annotated[
    str | None, typer.Option(help="How CTs are prepared; dca dataset presets lists the names.")
]
SpacingOption = Annotated[str | None, typer.Option(help="Voxel size of the model's grid in mm, as x,y,z.")]


def changes_of(preprocessing: str | None, spacing: str | None) -> dict[str, Any]:
    """Changes to a run's options; none where neither is given. A spacing takes the place of the preset's own.

    Raises UserError for a name there is not, or a spacing beside a preset of fixed shape.
    """
    from ..training.options import GridOptions
    from ..training.preprocessing import preprocessing as preset_of

    if preprocessing is None:
        return {} if spacing is None else {"grid": GridOptions(spacing=spacing_of(spacing))}
    preset = preset_of(preprocessing)
    grid = preset.grid
    if spacing is not None:
        if grid.shape is not None:
            raise UserError(
                f"Preprocessing '{preprocessing}' gives every CT the same number of voxels, so it has no --spacing.",
                "Leave one of them out.",
            )
        grid = replace(grid, spacing=spacing_of(spacing))
    return {"grid": grid, **preset.changes}
