"""Where training cases come from, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ...bundle.metadata import TrainingData
from ..cases import Case
from ..options import GridOptions

Progress = Callable[[float, str], None]


class Source(Protocol):
    """Cases of one kind, described well enough to make them again: plain data that goes into the run's record."""

    kind: ClassVar[str]

    def cases(self, cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None = None) -> list[Case]:
        """The cases on the model grid, kept in ``cache``; without their labels unless ``labelled``."""
        ...

    def describe(self, labelled: bool) -> tuple[TrainingData, ...]:
        """What a model trained on these cases, as labelled or unlabelled ones, must say of them."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which the class makes an equal source: ``cls(**data)``, lists for tuples."""
        ...


def cache_folder(cache: Path, grid: GridOptions) -> Path:
    """The folder in ``cache`` for cases on this ``grid``, so that runs on other grids never read them.

    HU are kept, so runs with other windows share the cases.
    """
    side = "x".join(f"{spacing:g}" for spacing in grid.spacing) + "mm"
    if grid.shape is not None:
        side = "x".join(map(str, grid.shape)) + "voxels"
    # Cases from before there was a filter lie in a folder without the suffix.
    filtered = "-filtered" if grid.anti_aliasing else ""
    folder = cache / f"{side}-{grid.orientation}{filtered}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
