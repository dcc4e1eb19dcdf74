"""CT painted from label maps to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...bundle.metadata import TrainingData
from ...errors import UserError
from ..cases import Case, load_case
from ..options import GridOptions
from ..painted.anatomy import load_anatomy
from ..painted.cohort import case_file, painted_cases
from ..painted.painting import PAINTER_VERSION
from .source import Progress, cache_folder

# Far from the seeds of phantoms; those for validation are never trained on.
PAINTED_SEEDS = 500_000
PAINTED_VALIDATION_SEEDS = 600_000


@dataclass(frozen=True)
class LabelMapFolder:
    """A folder that ``painted.anatomy.load_anatomy`` reads, the licence of its label map, and where that is from."""

    folder: str
    licence: str = "not stated"
    origin: str = ""


@dataclass(frozen=True)
class Painted:
    """``count`` cases painted from ``maps``, the first of them that of ``first_seed``."""

    kind: ClassVar[str] = "painted"

    maps: tuple[LabelMapFolder, ...]
    first_seed: int
    count: int

    def __post_init__(self) -> None:
        # From JSON come dictionaries.
        made = tuple(LabelMapFolder(**each) if isinstance(each, Mapping) else each for each in self.maps)
        object.__setattr__(self, "maps", made)

    def cases(self, cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None = None) -> list[Case]:
        """See ``Source``. Label maps are read only where cases are missing, which takes some 20 s for each of them."""
        if grid.shape is not None:
            raise UserError(
                "CTs are painted voxel by voxel in mm; a preprocessing of fixed shape has no such voxels.",
                "Choose another --preprocessing, or leave --synthesize out.",
            )
        folder = cache_folder(cache, grid) / f"painted_{self._digest()}"
        seeds = range(self.first_seed, self.first_seed + self.count)
        if all(case_file(folder, seed).exists() for seed in seeds):
            cases = [load_case(case_file(folder, seed)) for seed in seeds]
        else:
            anatomies = [load_anatomy(Path(each.folder)) for each in self.maps]
            cases = painted_cases(folder, anatomies, self.first_seed, self.count, grid, progress)
        return cases if labelled else [Case(case.name, case.hu, None) for case in cases]

    def describe(self, labelled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``. Every map is a source of its own; the cases are drawn from them alike."""
        shares = [self.count // len(self.maps) + (i < self.count % len(self.maps)) for i in range(len(self.maps))]
        return tuple(
            TrainingData(
                name=f"Synthetic CT painted from the label map {Path(each.folder).name}",
                labelled=share if labelled else 0,
                unlabelled=0 if labelled else share,
                licence=each.licence,
                source=each.origin,
                synthetic=True,
            )
            for each, share in zip(self.maps, shares, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return asdict(self)

    def _digest(self) -> str:
        """Tells cases of other label maps apart, of maps that have changed, and of other painters."""
        states = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for each in self.maps
            for path in sorted(Path(each.folder).iterdir())
            if path.is_file()
        ]
        return hashlib.sha256(repr((PAINTER_VERSION, states)).encode()).hexdigest()[:12]
