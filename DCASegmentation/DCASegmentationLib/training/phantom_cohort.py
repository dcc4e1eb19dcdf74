"""A cohort of phantoms to train on: some with labels, some without, each another person and another scanner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..phantom.case import Phantom, generate
from .cases import Case, load_case, prepare_case, save_case
from .options import GridOptions

Progress = Callable[[float, str], None]

# Seeds of people, far apart: who is trained on is never validated or tested on.
LABELLED_SEEDS = 100_000
UNLABELLED_SEEDS = 200_000
VALIDATION_SEEDS = 300_000
TEST_SEEDS = 400_000

_PHASES = ("portal_venous", "arterial", "delayed", "none")
_PHASE_SHARES = (0.5, 0.15, 0.15, 0.2)


@dataclass(frozen=True)
class Acquisition:
    """How a phantom was scanned: spacing (x, y, z) in mm, contrast phase and noise (HU)."""

    spacing: tuple[float, float, float]
    phase: str
    noise_hu: float


def draw_acquisition(seed: int, finest_mm: float = 1.5) -> Acquisition:
    """A scanner's settings for the person of ``seed``; no voxel side is finer than ``finest_mm``."""
    generator = np.random.default_rng([seed, 1])
    in_plane = round(float(generator.uniform(max(finest_mm, 1.0), max(finest_mm, 1.0) + 1.0)), 2)
    slice_mm = round(float(generator.uniform(2.5, 5.0)), 1)
    return Acquisition(
        spacing=(in_plane, in_plane, slice_mm),
        phase=str(generator.choice(_PHASES, p=_PHASE_SHARES)),
        noise_hu=round(float(generator.uniform(6.0, 22.0)), 1),
    )


def scan_phantom(seed: int, finest_mm: float = 1.5) -> Phantom:
    """The person of ``seed`` under the settings that ``draw_acquisition`` gives it."""
    acquisition = draw_acquisition(seed, finest_mm)
    options: dict[str, Any] = vars(acquisition)
    return generate(seed, **options)


def phantom_cases(
    folder: Path,
    group: str,
    first_seed: int,
    count: int,
    grid: GridOptions,
    labelled: bool,
    progress: Progress | None = None,
) -> list[Case]:
    """``count`` phantoms on the model grid, made once and kept in ``folder``.

    ``group`` names the files; cases already there are read, so an interrupted cohort goes on where it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for index in range(count):
        seed = first_seed + index
        path = folder / f"{group}_{seed}.npz"
        if not path.exists():
            # Half the model's voxel is fine enough for a scan that is then resampled to it.
            phantom = scan_phantom(seed, finest_mm=min(grid.spacing) / 2)
            save_case(prepare_case(path.stem, phantom.ct, phantom.labels if labelled else None, grid), path)
        cases.append(load_case(path))
        if progress is not None:
            progress((index + 1) / count, f"Phantoms for {group}: {index + 1} of {count}")
    return cases
