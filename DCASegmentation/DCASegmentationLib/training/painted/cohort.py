"""Painted cases kept on disk, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..cases import Case, load_case, save_case
from ..options import GridOptions
from .anatomy import Anatomy
from .painting import paint_case

Progress = Callable[[float, str], None]


def painted_cases(
    folder: Path,
    anatomies: Sequence[Anatomy],
    first_seed: int,
    count: int,
    grid: GridOptions,
    progress: Progress | None = None,
) -> list[Case]:
    """``count`` painted cases on the model grid, the first that of ``first_seed``, kept in ``folder``.

    Cases already there are read, so an interrupted cohort goes on where it stopped. A folder belongs to one grid and
    one set of anatomies: the files do not tell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for index in range(count):
        seed = first_seed + index
        path = case_file(folder, seed)
        if not path.exists():
            save_case(paint_case(seed, anatomies, grid), path)
        cases.append(load_case(path))
        if progress is not None:
            progress((index + 1) / count, f"Painted case {index + 1} of {count}")
    return cases


def case_file(folder: Path, seed: int) -> Path:
    """Where ``painted_cases`` keeps the case of ``seed``."""
    return folder / f"painted_{seed}.npz"
