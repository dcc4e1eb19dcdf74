"""Where training cases come from: CT files, phantoms, and CTs synthesized from label maps."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from ..errors import UserError
from ..imaging.ct_checks import check_ct
from ..imaging.geometry import lay_over
from ..imaging.intensity import left_out, told_left_out
from ..imaging.readers import read_ct, read_labels
from ..models.metadata import TrainingData
from ..synthesis.label_to_ct.anatomy import load_anatomy
from ..synthesis.label_to_ct.recipe import RECIPE_VERSION
from ..synthesis.label_to_ct.registration import read_warps
from ..synthesis.label_to_ct.renderer import Renderer
from ..synthesis.phantom.case import Phantom, generate
from ..types import ProgressCallback
from .cases import Case, cache_folder, load_case, prepare_case, save_case
from .datalist import Entry
from .options import GridOptions, TrainingOptions
from .sampling import MixedSampler, PatchSampler, Sampler
from .synthetic_sampling import RecipeSampler

_log = logging.getLogger(__name__)

_HIGHEST = 65535

# Part of a prepared case's name: 2 keeps labels above 255, which wrapped around before.
_PREPARATION = 2


@dataclass(frozen=True)
class CTFile:
    """One CT and its label map, if it has one.

    ``ids`` renames the labels of a map in other numbers: theirs to ours, 0 for what is background here; a number it
    does not name is background too. Empty leaves them as they are. ``unannotated`` are the labels (ours) that the map
    does not tell of.
    """

    image: str
    labels: str | None = None
    ids: Mapping[int, int] = field(default_factory=dict)
    unannotated: tuple[int, ...] = ()


@dataclass(frozen=True)
class CTFiles:
    """CTs under one ``name`` and ``licence``; ``origin`` says where they are from."""

    kind: ClassVar[str] = "ct_files"

    name: str
    licence: str
    origin: str
    files: tuple[CTFile, ...]

    def __post_init__(self) -> None:
        # From JSON come dictionaries with lists and text for numbers.
        made = tuple(file if isinstance(file, CTFile) else _file_from_json(file) for file in self.files)
        object.__setattr__(self, "files", made)

    def cases(
        self, cache: Path, grid: GridOptions, labelled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
        """See ``Source``. Raises ImageError for a file that cannot be used, or a label map on another grid."""
        folder = cache_folder(cache, grid)
        cases: list[Case] = []
        unnamed: list[dict[int, int]] = []
        names = self.names
        for index, file in enumerate(self.files):
            path = folder / f"{_digest(file, labelled)}.npz"
            if not path.exists():
                save_case(_prepare(file, grid, labelled, names[index], unnamed), path)
            cases.append(replace(load_case(path), name=names[index]))
            if progress is not None:
                progress((index + 1) / len(self.files), f"CT {index + 1} of {len(self.files)}")
        for note in told_left_out(unnamed):
            _log.warning("%s: %s", self.name, note)
        return cases

    @property
    def names(self) -> list[str]:
        """A name for each CT: that of its file, with as many of its folders as tell it from the others."""
        return _names([Path(file.image) for file in self.files])

    def entries(self) -> list[Entry]:
        """Those with a label map, as entries of a list."""
        return [
            Entry(Path(file.image), Path(file.labels), file.unannotated, dict(file.ids))
            for file in self.files
            if file.labels
        ]

    def describe(self, labelled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``."""
        count = len(self.files)
        return (TrainingData(self.name, count if labelled else 0, 0 if labelled else count, self.licence, self.origin),)

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return asdict(self)


def _file_from_json(data: Mapping[str, Any]) -> CTFile:
    ids = {int(theirs): int(ours) for theirs, ours in data.get("ids", {}).items()}
    return CTFile(data["image"], data.get("labels"), ids, tuple(data.get("unannotated", data.get("unknown", ()))))


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of ``paths`` that differ from each other, as text with slashes."""
    length = 1
    while True:
        names = ["/".join(path.parts[-length:]) for path in paths]
        # Of one CT that is listed twice no ending differs.
        if len(set(names)) == len(set(paths)) or length >= max(len(path.parts) for path in paths):
            return names
        length += 1


def _prepare(file: CTFile, grid: GridOptions, labelled: bool, name: str, unnamed: list[dict[int, int]]) -> Case:
    ct = read_ct(Path(file.image))
    check_ct(ct)
    if not labelled or file.labels is None:
        return prepare_case(name, ct, None, grid)
    labels = read_labels(Path(file.labels))
    lay_over(labels, Path(file.labels).name, ct, Path(file.image).name)
    if file.ids:
        unnamed.append(left_out(labels, file.ids))
        labels = _renamed(labels, file.ids)
    return prepare_case(name, ct, labels, grid, file.unannotated)


def _renamed(labels: sitk.Image, ids: Mapping[int, int]) -> sitk.Image:
    theirs = sitk.GetArrayFromImage(labels)
    wrong = [label for label in ids.values() if not 0 <= label <= _HIGHEST]
    if wrong:
        raise UserError(f"A label map cannot be renamed to label {wrong[0]}.", f"Labels are 0 to {_HIGHEST}.")
    # Unsigned 16 bits are the most that a label map has: numbers beyond are in none.
    table = np.zeros(_HIGHEST + 1, np.uint16)
    for number, label in ids.items():
        if 0 <= number <= _HIGHEST:
            table[number] = label
    renamed = sitk.GetImageFromArray(table[theirs])
    renamed.CopyInformation(labels)
    return renamed


def _digest(file: CTFile, labelled: bool) -> str:
    """A name for the prepared case that changes when the files, or what is made of them, change."""
    paths = [file.image] + ([file.labels] if labelled and file.labels else [])
    states = [(str(Path(path).resolve()), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    made_of = json.dumps([_PREPARATION, states, sorted(file.ids.items()), list(file.unannotated)])
    return f"ct_{hashlib.sha256(made_of.encode()).hexdigest()[:20]}"


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

    def cases(
        self, cache: Path, grid: GridOptions, labelled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
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
            source="dcaseg.synthesis.phantom of this program; no patient is involved",
            synthetic=True,
        )
        return (data,) if self.count else ()

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return asdict(self)


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

    def cases(
        self, cache: Path, grid: GridOptions, labelled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
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

    def cases(
        self, cache: Path, grid: GridOptions, labelled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
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
