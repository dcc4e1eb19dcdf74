"""Sources of training cases: CT files, phantoms, and CTs synthesized from label maps."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from ..errors import UserError
from ..imaging.ct_checks import require_ct
from ..imaging.geometry import copy_geometry_if_close
from ..imaging.intensity import count_ignored_labels, describe_ignored_labels
from ..imaging.readers import read_ct, read_labels
from ..json_io import dump
from ..models.metadata import TrainingData
from ..option_fields import option
from ..synthesis.label_to_ct.anatomy import load_anatomy
from ..synthesis.label_to_ct.recipe import RECIPE_VERSION
from ..synthesis.label_to_ct.recipe_generator import ScanRange
from ..synthesis.label_to_ct.registration import read_warps
from ..synthesis.label_to_ct.renderer import Renderer
from ..synthesis.phantom.case import Phantom, generate
from ..types import ProgressCallback
from .cases import Case, cache_folder, load_case, prepare_case, save_case
from .datalist import Entry, make_unique_names
from .options import GridOptions, TrainingOptions
from .sampling import MixedSampler, PatchSampler, Sampler
from .synthetic_sampling import RecipeSampler

_log = logging.getLogger(__name__)

_MAX_LABEL = 65535

# The version of the preparation, which is part of a cached case's name. Version 1 wrapped labels above 255.
_PREPARATION = 2


@dataclass(frozen=True)
class CTFile:
    """One CT and its label map, if it has one.

    ``ids`` converts the numbers of the label map to labels of the vocabulary; numbers that it does not contain become
    background. If it is empty, the numbers are kept. ``unannotated`` are labels of the vocabulary that the label map
    does not include.
    """

    image: str
    labels: str | None = None
    ids: Mapping[int, int] = field(default_factory=dict)
    unannotated: tuple[int, ...] = option((), earlier=("unknown",))


@dataclass(frozen=True)
class CTFiles:
    """CT files with a common ``name``, ``licence`` and ``origin``."""

    kind: ClassVar[str] = "ct_files"

    name: str
    licence: str
    origin: str
    files: tuple[CTFile, ...]

    def cases(
        self, cache: Path, grid: GridOptions, labeled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
        """See ``Source``. Raises ImageError if a file cannot be used, or if a label map has another grid than its
        CT."""
        folder = cache_folder(cache, grid)
        cases: list[Case] = []
        omitted: list[dict[int, int]] = []
        names = self.names
        for index, file in enumerate(self.files):
            path = folder / f"{_make_cache_name(file, labeled)}.npz"
            if not path.exists():
                save_case(_prepare(file, grid, labeled, names[index], omitted), path)
            cases.append(replace(load_case(path), name=names[index]))
            if progress is not None:
                progress((index + 1) / len(self.files), f"CT {index + 1} of {len(self.files)}")
        for note in describe_ignored_labels(omitted):
            _log.warning("%s: %s", self.name, note)
        return cases

    @property
    def names(self) -> list[str]:
        """A name for each CT: its file name, with as many parent folders as needed to make it unique."""
        return make_unique_names([Path(file.image) for file in self.files])

    def to_entries(self) -> list[Entry]:
        """The CTs with a label map, as entries of a data list."""
        return [
            Entry(Path(file.image), Path(file.labels), file.unannotated, dict(file.ids))
            for file in self.files
            if file.labels
        ]

    def describe(self, labeled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``."""
        count = len(self.files)
        return (TrainingData(self.name, count if labeled else 0, 0 if labeled else count, self.licence, self.origin),)

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return dump(self)


def _prepare(file: CTFile, grid: GridOptions, labeled: bool, name: str, omitted: list[dict[int, int]]) -> Case:
    """Read and prepare a case. Labels that ``file.ids`` leaves out go to ``omitted``."""
    ct = read_ct(Path(file.image))
    require_ct(ct, Path(file.image).name)
    if not labeled or file.labels is None:
        return prepare_case(name, ct, None, grid)
    labels = read_labels(Path(file.labels))
    copy_geometry_if_close(labels, Path(file.labels).name, ct, Path(file.image).name)
    if file.ids:
        omitted.append(count_ignored_labels(labels, file.ids))
        labels = _remap_labels(labels, file.ids)
    return prepare_case(name, ct, labels, grid, file.unannotated)


def _remap_labels(labels: sitk.Image, ids: Mapping[int, int]) -> sitk.Image:
    array = sitk.GetArrayFromImage(labels)
    invalid = [label for label in ids.values() if not 0 <= label <= _MAX_LABEL]
    if invalid:
        raise UserError(f"Label {invalid[0]} in label_map is not valid.", f"Use labels from 0 to {_MAX_LABEL}.")
    # Label maps have at most 16 bits per voxel, so higher numbers do not occur.
    table = np.zeros(_MAX_LABEL + 1, np.uint16)
    for number, label in ids.items():
        if 0 <= number <= _MAX_LABEL:
            table[number] = label
    converted = sitk.GetImageFromArray(table[array])
    converted.CopyInformation(labels)
    return converted


def _make_cache_name(file: CTFile, labeled: bool) -> str:
    """A name for the cached case, which changes if the files or their preparation change."""
    paths = [file.image] + ([file.labels] if labeled and file.labels else [])
    states = [(str(Path(path).resolve()), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    content = json.dumps([_PREPARATION, states, sorted(file.ids.items()), list(file.unannotated)])
    return f"ct_{hashlib.sha256(content.encode()).hexdigest()[:20]}"


# The first seed of each group of phantoms. They are far apart, so that the groups never overlap.
LABELED_SEEDS = 100_000
UNLABELED_SEEDS = 200_000
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
    """Draw the scanner settings for the phantom of ``seed``; no voxel side is below ``finest_mm``."""
    generator = np.random.default_rng([seed, 1])
    in_plane = round(float(generator.uniform(max(finest_mm, 1.0), max(finest_mm, 1.0) + 1.0)), 2)
    slice_mm = round(float(generator.uniform(2.5, 5.0)), 1)
    return Acquisition(
        spacing=(in_plane, in_plane, slice_mm),
        phase=str(generator.choice(_PHASES, p=_PHASE_SHARES)),
        noise_hu=round(float(generator.uniform(6.0, 22.0)), 1),
    )


def scan_phantom(seed: int, finest_mm: float = 1.5) -> Phantom:
    """Scan the phantom of ``seed`` with the settings of ``draw_acquisition``."""
    acquisition = draw_acquisition(seed, finest_mm)
    options: dict[str, Any] = vars(acquisition)
    return generate(seed, **options)


@dataclass(frozen=True)
class Phantoms:
    """``count`` phantoms with consecutive seeds from ``first_seed`` on."""

    kind: ClassVar[str] = "phantoms"

    first_seed: int
    count: int

    def cases(
        self, cache: Path, grid: GridOptions, labeled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
        """See ``Source``. Existing cases are read, so an interrupted preparation continues where it stopped."""
        folder = cache_folder(cache, grid)
        cases: list[Case] = []
        for index in range(self.count):
            seed = self.first_seed + index
            path = folder / f"phantom_{seed}{'' if labeled else '_unlabelled'}.npz"
            if not path.exists():
                # Half of the model's spacing is fine enough for a scan that is resampled to it.
                phantom = scan_phantom(seed, finest_mm=min(grid.spacing) / 2)
                save_case(prepare_case(path.stem, phantom.ct, phantom.labels if labeled else None, grid), path)
            cases.append(load_case(path))
            if progress is not None:
                progress((index + 1) / self.count, f"Phantom {index + 1} of {self.count}")
        return cases

    def describe(self, labeled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``."""
        data = TrainingData(
            name="Synthetic abdominal CT of dca phantom",
            labeled=self.count if labeled else 0,
            unlabeled=0 if labeled else self.count,
            licence="Apache-2.0",
            source="dcaseg.synthesis.phantom of this program; no patient is involved",
            synthetic=True,
        )
        return (data,) if self.count else ()

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return dump(self)


# Far from the seeds of phantoms. Validation seeds are never used for training.
SYNTHESIZED_SEEDS = 500_000
SYNTHESIZED_VALIDATION_SEEDS = 600_000


@dataclass(frozen=True)
class LabelMapFolder:
    """A folder with a label map (see ``load_anatomy``), and the label map's license and origin."""

    folder: str
    licence: str = "not stated"
    origin: str = ""


@dataclass(frozen=True)
class SynthesizedCTs:
    """``count`` synthetic CTs made from the label maps ``maps``, with consecutive seeds from ``first_seed`` on.

    ``warps`` is a folder of registrations (``dca register-label-maps``), which allow anatomies between the label maps.
    ``scan_range`` is the scanned part of the body; None draws another for each CT, with short and cut scans.
    """

    kind: ClassVar[str] = "painted"

    maps: tuple[LabelMapFolder, ...]
    first_seed: int
    count: int
    warps: str | None = None
    scan_range: ScanRange | None = None

    def cases(
        self, cache: Path, grid: GridOptions, labeled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
        """See ``Source``. Label maps are read only if cases are missing. Raises UserError for a grid of fixed shape."""
        if grid.shape is not None:
            raise UserError(
                "Synthetic CTs need a voxel spacing in mm, but this preprocessing resizes every CT to a fixed shape.",
                "Choose another --preprocessing, or omit --synthesize.",
            )
        folder = cache_folder(cache, grid) / f"painted_{self._compute_digest()}"
        folder.mkdir(parents=True, exist_ok=True)
        renderer: Renderer | None = None
        cases: list[Case] = []
        for index in range(self.count):
            seed = self.first_seed + index
            path = folder / f"painted_{seed}.npz"
            if not path.exists():
                renderer = renderer or self.make_renderer(cache, grid)
                save_case(synthesize_case(renderer, seed, scan_range=self.scan_range), path)
            case = load_case(path)
            cases.append(case if labeled else Case(case.name, case.hu, None))
            if progress is not None:
                progress((index + 1) / self.count, f"Synthetic CT {index + 1} of {self.count}")
        return cases

    def make_renderer(self, cache: Path, grid: GridOptions, device: str = "cpu") -> Renderer:
        """Create a renderer of these label maps on ``grid``. Raises UserError if a label map cannot be used."""
        return _make_renderer(self.maps, self.warps, cache, grid, device)

    def describe(self, labeled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``. Every label map is a separate entry; the cases are divided equally among them."""
        shares = [self.count // len(self.maps) + (i < self.count % len(self.maps)) for i in range(len(self.maps))]
        return tuple(
            TrainingData(
                name=f"Synthetic CT rendered from the label map {Path(each.folder).name}",
                labeled=share if labeled else 0,
                unlabeled=0 if labeled else share,
                licence=each.licence,
                source=each.origin,
                synthetic=True,
            )
            for each, share in zip(self.maps, shares, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return dump(self)

    def _compute_digest(self) -> str:
        """A hash that changes with the label maps, their files, and the version of recipes."""
        states = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for each in self.maps
            for path in sorted(Path(each.folder).iterdir())
            if path.is_file()
        ]
        if self.warps is not None:
            states += [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(Path(self.warps).glob("*.npz"))]
        about = (RECIPE_VERSION, states) if self.scan_range is None else (RECIPE_VERSION, states, self.scan_range)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RecipeStream:
    """An endless stream of synthetic CTs from ``maps``, rendered when training draws a patch. No case is stored.

    ``warps`` as in ``SynthesizedCTs``. ``share`` is the fraction of a run's labeled patches that come from the stream.
    Raises ValueError if it is not above 0 and at most 1.
    """

    kind: ClassVar[str] = "recipe_stream"

    maps: tuple[LabelMapFolder, ...]
    warps: str | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share must be above 0 and at most 1, not {self.share}")

    def cases(
        self, cache: Path, grid: GridOptions, labeled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
        """No cases: patches come from ``make_sampler``."""
        return []

    def make_sampler(self, cache: Path, options: TrainingOptions, device: str = "cpu") -> RecipeSampler:
        """Create a sampler of this stream that renders on ``device``.

        Raises UserError if a label map cannot be used, or for options that ``RecipeSampler`` does not support.
        """
        return RecipeSampler(_make_renderer(self.maps, self.warps, cache, options.grid, device), options)

    def mix_samplers(self, sampler: RecipeSampler, cases: Sequence[Case], options: TrainingOptions) -> Sampler:
        """Combine ``make_sampler`` of this stream with labeled ``cases``, according to the stream's share."""
        if self.share == 1:
            return sampler
        return MixedSampler([sampler, PatchSampler(cases, options)], [self.share, 1 - self.share])

    def describe(self, labeled: bool) -> tuple[TrainingData, ...]:
        """See ``Source``. Each label map counts as one case."""
        return tuple(
            TrainingData(
                name=f"Label map {Path(each.folder).name}, from which synthetic CTs were made throughout the training",
                labeled=1 if labeled else 0,
                unlabeled=0 if labeled else 1,
                licence=each.licence,
                source=each.origin,
                synthetic=True,
            )
            for each in self.maps
        )

    def to_json(self) -> dict[str, Any]:
        """See ``Source``."""
        return dump(self)


def _make_renderer(
    maps: Sequence[LabelMapFolder], warps: str | None, cache: Path, grid: GridOptions, device: str
) -> Renderer:
    anatomies = [load_anatomy(Path(each.folder), cache=cache / "anatomies") for each in maps]
    loaded_warps = {} if warps is None else read_warps(Path(warps))
    return Renderer(anatomies, grid.spacing, grid.orientation, device, loaded_warps)


def synthesize_case(
    renderer: Renderer, seed: int, phase: str | None = None, scan_range: ScanRange | None = None
) -> Case:
    """Render the synthetic case of ``seed``; ``phase`` and ``scan_range`` as in ``draw_recipe``."""
    recipe = renderer.draw_recipe(seed, phase=phase, scan_range=scan_range)
    rendered = renderer.render_case(recipe)
    hu = rendered.hu.cpu().numpy().astype(np.int16)
    name = f"painted_{seed}_{recipe.anatomy}_{recipe.appearance.phase}"
    return Case(name, hu, rendered.labels.cpu().numpy(), rendered.unannotated)
