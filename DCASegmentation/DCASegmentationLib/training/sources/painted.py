"""CT painted from label maps to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...bundle.metadata import TrainingData
from ...errors import UserError
from ...synthesis.label_to_ct.anatomy import load_anatomy
from ...synthesis.label_to_ct.recipe import RECIPE_VERSION
from ...synthesis.label_to_ct.registration import read_warps
from ...synthesis.label_to_ct.renderer import Renderer
from ..cases import Case, load_case, save_case
from ..options import GridOptions, TrainingOptions
from ..recipe_sampling import RecipeSampler
from ..sampling import MixedSampler, PatchSampler, Sampler
from .source import Progress, cache_folder

# Far from the seeds of phantoms; those for validation are never trained on.
PAINTED_SEEDS = 500_000
PAINTED_VALIDATION_SEEDS = 600_000


@dataclass(frozen=True)
class LabelMapFolder:
    """A folder that ``load_anatomy`` reads, the licence of its label map, and where that is from."""

    folder: str
    licence: str = "not stated"
    origin: str = ""


@dataclass(frozen=True)
class Painted:
    """``count`` cases painted from ``maps``, the first of them that of ``first_seed``. ``warps``: a folder of
    registrations (``dca register-label-maps``), for bodies between the label maps, too."""

    kind: ClassVar[str] = "painted"

    maps: tuple[LabelMapFolder, ...]
    first_seed: int
    count: int
    warps: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", _folders(self.maps))

    def cases(self, cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None = None) -> list[Case]:
        """See ``Source``. Label maps are read only where cases are missing; prepared once, they stay in ``cache``."""
        if grid.shape is not None:
            raise UserError(
                "CTs are synthesized voxel by voxel in mm; a preprocessing of fixed shape has no such voxels.",
                "Choose another --preprocessing, or leave --synthesize out.",
            )
        folder = cache_folder(cache, grid) / f"painted_{self._digest()}"
        folder.mkdir(parents=True, exist_ok=True)
        renderer: Renderer | None = None
        cases: list[Case] = []
        for index in range(self.count):
            seed = self.first_seed + index
            path = folder / f"painted_{seed}.npz"
            if not path.exists():
                renderer = renderer or self.renderer(cache, grid)
                save_case(synthesize_case(renderer, seed), path)
            case = load_case(path)
            cases.append(case if labelled else Case(case.name, case.hu, None))
            if progress is not None:
                progress((index + 1) / self.count, f"Synthetic CT {index + 1} of {self.count}")
        return cases

    def renderer(self, cache: Path, grid: GridOptions, device: str = "cpu") -> Renderer:
        """A renderer of these label maps on ``grid``. Raises UserError where a label map cannot be used."""
        return _renderer(self.maps, self.warps, cache, grid, device)

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
        """Differs for other label maps, maps that have changed, and other versions of recipes."""
        states = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for each in self.maps
            for path in sorted(Path(each.folder).iterdir())
            if path.is_file()
        ]
        if self.warps is not None:
            states += [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(Path(self.warps).glob("*.npz"))]
        return hashlib.sha256(repr((RECIPE_VERSION, states)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RecipeStream:
    """CTs without end, made from ``maps`` as training draws patches of them: no case is made ahead, none is kept.

    ``warps`` as in ``Painted``; ``share`` is that of the labelled patches of a run that are drawn from it.
    """

    kind: ClassVar[str] = "recipe_stream"

    maps: tuple[LabelMapFolder, ...]
    warps: str | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"a share of {self.share} is not above 0 and at most 1")
        object.__setattr__(self, "maps", _folders(self.maps))

    def cases(self, cache: Path, grid: GridOptions, labelled: bool, progress: Progress | None = None) -> list[Case]:
        """See ``Source``: none."""
        return []

    def sampler(self, cache: Path, options: TrainingOptions, device: str = "cpu") -> RecipeSampler:
        """What draws patches from this stream, rendered on ``device``. Raises UserError where a label map cannot be
        used, or for options that recipes cannot follow."""
        return RecipeSampler(_renderer(self.maps, self.warps, cache, options.grid, device), options)

    def mixed(self, sampler: RecipeSampler, cases: Sequence[Case], options: TrainingOptions) -> Sampler:
        """``sampler`` of this stream together with labelled ``cases``, in the stream's share."""
        if self.share == 1:
            return sampler
        return MixedSampler([sampler, PatchSampler(cases, options)], [self.share, 1 - self.share])

    def describe(self, labelled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``. What can be counted are the label maps, each a labelled one."""
        return tuple(
            TrainingData(
                name=f"Label map {Path(each.folder).name}, from which synthetic CTs were made throughout the training",
                labelled=1 if labelled else 0,
                unlabelled=0 if labelled else 1,
                licence=each.licence,
                source=each.origin,
                synthetic=True,
            )
            for each in self.maps
        )

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return asdict(self)


def _folders(maps: Sequence[LabelMapFolder | Mapping[str, Any]]) -> tuple[LabelMapFolder, ...]:
    """From JSON come dictionaries."""
    return tuple(LabelMapFolder(**each) if isinstance(each, Mapping) else each for each in maps)


def _renderer(
    maps: Sequence[LabelMapFolder], warps: str | None, cache: Path, grid: GridOptions, device: str
) -> Renderer:
    anatomies = [load_anatomy(Path(each.folder), cache=cache / "anatomies") for each in maps]
    found = {} if warps is None else read_warps(Path(warps))
    return Renderer(anatomies, grid.spacing, grid.orientation, device, found)


def synthesize_case(renderer: Renderer, seed: int, phase: str | None = None) -> Case:
    """The case of the recipe of ``seed``; ``phase`` as in ``draw_recipe``."""
    recipe = renderer.draw_recipe(seed, phase=phase)
    made = renderer.render_case(recipe)
    hu = made.hu.cpu().numpy().astype(np.int16)
    name = f"painted_{seed}_{recipe.anatomy}_{recipe.appearance.phase}"
    return Case(name, hu, made.labels.cpu().numpy(), made.unannotated)
