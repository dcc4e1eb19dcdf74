"""Phantoms to train on, each another person under another scanner."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...bundle.metadata import TrainingData
from ...phantom.case import Phantom, generate
from ..cases import Case, load_case, prepare_case, save_case
from ..options import GridOptions
from .source import Progress, cache_folder

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


@dataclass(frozen=True)
class Phantoms:
    """``count`` phantoms, the first of them the person of ``first_seed``."""

    kind: ClassVar[str] = "phantoms"

    first_seed: int
    count: int

    def cases(self, cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None = None) -> list[Case]:
        """See ``Source``. Cases already there are read, so an interrupted cohort goes on where it stopped."""
        folder = cache_folder(cache, grid)
        cases: list[Case] = []
        for index in range(self.count):
            seed = self.first_seed + index
            path = folder / f"phantom_{seed}{'' if labelled else '_unlabelled'}.npz"
            if not path.exists():
                # Half the model's voxel is fine enough for a scan that is then resampled to it.
                phantom = scan_phantom(seed, finest_mm=min(grid.spacing) / 2)
                save_case(prepare_case(path.stem, phantom.ct, phantom.labels if labelled else None, grid), path)
            cases.append(load_case(path))
            if progress is not None:
                progress((index + 1) / self.count, f"Phantom {index + 1} of {self.count}")
        return cases

    def describe(self, labelled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``."""
        data = TrainingData(
            name="Synthetic abdominal CT of dca phantom",
            labelled=self.count if labelled else 0,
            unlabelled=0 if labelled else self.count,
            licence="Apache-2.0",
            source="DCASegmentationLib.phantom of this program; no patient is involved",
            synthetic=True,
        )
        return (data,) if self.count else ()

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return asdict(self)
