"""Training cases on the model grid, in memory and in the cache on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import SimpleITK as sitk

from ..errors import DAMAGED_NPZ, UserError, get_reason
from ..imaging.grid import make_model_grid, resize_grid
from ..imaging.intensity import apply_window, standardize
from ..imaging.resampling import resample
from ..imaging.writers import write_file
from ..models.metadata import TrainingData
from ..types import ProgressCallback
from .options import GridOptions

# Foreground positions stored for each organ of a case: enough to sample from, but little memory.
_POSITIONS = 4000

# Subfolder of a run for the cases that a strategy has pseudo-labeled.
_PSEUDO = "pseudo"


@dataclass(frozen=True)
class Case:
    """One CT on the model grid.

    - ``hu``: int16 (depth, height, width), in HU.
    - ``labels``: unsigned integers (depth, height, width), or None for an unlabeled case.
    - ``unannotated``: labels that the label map of a partially labeled case does not include. Its background may be any
      of these organs.
    - ``spacing``: (depth, height, width) in mm on a grid of fixed shape; None if it is the grid's spacing.
    - ``ignored``: booleans (depth, height, width), true for voxels without a label, such as the uncertain voxels of a
      pseudo-labeled case; None if all voxels have one.

    Raises UserError if the label map contains an ``unannotated`` label.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray | None
    unannotated: tuple[int, ...] = ()
    spacing: tuple[float, float, float] | None = None
    ignored: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.labels is None or not self.unannotated:
            return
        contradictory = np.intersect1d(self.labels, self.unannotated)
        if len(contradictory):
            listed = ", ".join(str(label) for label in contradictory[:5])
            raise UserError(
                f"The label map of {self.name} has voxels of label {listed}, which its entry lists as unannotated.",
                "Remove the label from 'unannotated', or from the label map.",
            )

    @cached_property
    def positions(self) -> dict[int, np.ndarray]:
        """Voxel indices (n, 3) of each organ present, to center patches on: a fixed random subset of its voxels."""
        if self.labels is None:
            return {}
        generator = np.random.default_rng(0)
        positions: dict[int, np.ndarray] = {}
        for label in np.unique(self.labels):
            if label == 0:
                continue
            flat = np.flatnonzero(self.labels == label)
            if len(flat) > _POSITIONS:
                flat = generator.choice(flat, _POSITIONS, replace=False)
            positions[int(label)] = np.stack(np.unravel_index(flat, self.labels.shape), axis=1)
        return positions

    def get_voxel_size(self, grid: GridOptions) -> tuple[float, float, float]:
        """(depth, height, width) of a voxel in mm."""
        x, y, z = grid.spacing
        return self.spacing or (z, y, x)

    def scale_intensity(self, hu: np.ndarray, grid: GridOptions) -> np.ndarray:
        """Scale ``hu`` (the case's or a patch of it) to the network's input: float32, 0 to 1 if scaled by a window."""
        if grid.scaling == "window":
            return apply_window(hu, *grid.hu_window)
        return standardize(hu, *self._moments)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        return float(self.hu.mean(dtype=np.float64)), float(self.hu.std(dtype=np.float64))

    def count_voxels(self, n_labels: int) -> np.ndarray:
        """The number of voxels of each label 0 to ``n_labels`` (or to the highest label, if larger), int64."""
        missing = max(n_labels + 1 - len(self._counts), 0)
        return np.pad(self._counts, (0, missing))

    @cached_property
    def _counts(self) -> np.ndarray:
        if self.labels is None:
            return np.zeros(1, np.int64)
        counts = np.bincount((self.labels if self.ignored is None else self.labels[~self.ignored]).ravel())
        return counts.astype(np.int64)


def prepare_case(
    name: str, ct: sitk.Image, labels: sitk.Image | None, grid: GridOptions, unannotated: tuple[int, ...] = ()
) -> Case:
    """Resample a CT (HU) and its label map, if there is one, to the model grid; ``unannotated`` as in ``Case``.

    ``labels`` are integers from 0 to 65535, as ``read_labels`` returns them; resampling does not change the values.
    Raises UserError for other labels, and as ``Case`` does.
    """
    target, spacing = make_model_grid(ct, grid.spacing, grid.orientation), None
    if grid.shape is not None:
        target = resize_grid(ct, grid.shape, grid.orientation)
        spacing = (target.spacing[2], target.spacing[1], target.spacing[0])
    hu = sitk.GetArrayFromImage(resample(ct, target, anti_aliasing=grid.anti_aliasing))
    hu = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    if labels is None:
        return Case(name, hu, None, spacing=spacing)
    on_grid = sitk.GetArrayFromImage(resample(labels, target, "nearest", outside=0))
    return Case(name, hu, _to_unsigned(on_grid, name), unannotated, spacing)


def _to_unsigned(labels: np.ndarray, name: str) -> np.ndarray:
    """Convert to uint8, or to uint16 if a label is above 255. Raises UserError for other values."""
    low, high = (labels.min(), labels.max()) if labels.size else (0, 0)
    dtype = np.uint8 if high <= 255 else np.uint16
    # The comparison is needed because astype wraps and truncates without an error.
    converted = labels.astype(dtype) if low >= 0 and high <= 65535 else None
    if converted is None or not np.array_equal(converted, labels):
        raise UserError(
            f"The label map of {name} has labels that are not integers from 0 to 65535.", "Renumber its labels."
        )
    return converted


def save_case(case: Case, path: Path) -> None:
    """Write a case as NPZ: to a temporary file first, so that several processes can write the same case safely.

    Raises OutputError if the file cannot be written.
    """
    arrays = {"hu": case.hu}
    if case.labels is not None:
        arrays |= {"labels": case.labels, "unannotated": np.array(case.unannotated, np.int64)}
    if case.spacing is not None:
        arrays["spacing"] = np.array(case.spacing)
    if case.ignored is not None:
        arrays["ignored"] = case.ignored

    write_file(path, lambda temporary: np.savez(temporary, **arrays))  # type: ignore[arg-type]


def load_case(path: Path) -> Case:
    """Read a case written by ``save_case``. Raises UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            unannotated = tuple(int(label) for label in arrays.get("unannotated", arrays.get("unknown", ())))
            sides = arrays.get("spacing")
            spacing = None if sides is None else (float(sides[0]), float(sides[1]), float(sides[2]))
            return Case(path.stem, arrays["hu"], arrays.get("labels"), unannotated, spacing, arrays.get("ignored"))
    except DAMAGED_NPZ as error:
        raise UserError(
            f"The cached case {path} cannot be read ({get_reason(error)}).",
            "Delete the file; it will be created again.",
        ) from error


def write_pseudo_cases(folder: Path, step: int, cases: Sequence[Case]) -> None:
    """Save the pseudo-labeled ``cases`` that a run uses from ``step`` on in its ``folder``: all of them or none."""
    target = _get_pseudo_label_folder(folder, step)
    part = target.with_name(target.name + ".part")
    for leftover in (part, target):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    for index, case in enumerate(cases):
        # The number keeps the order, and separates cases with the same name.
        save_case(case, part / f"{index:04d} {case.name.replace('/', '_')}.npz")
    part.rename(target)


def read_pseudo_cases(folder: Path, step: int) -> list[Case]:
    """The pseudo-labeled cases that a run in ``folder`` uses when it resumes at ``step``.

    Cases from ``step`` itself are not included, because the run is about to make them again.
    """
    folders = sorted((folder / _PSEUDO).glob("step-*"))
    earlier = [path for path in folders if path.suffix != ".part" and int(path.name.removeprefix("step-")) < step]
    return [load_case(path) for path in sorted(earlier[-1].glob("*.npz"))] if earlier else []


def _get_pseudo_label_folder(folder: Path, step: int) -> Path:
    return folder / _PSEUDO / f"step-{step:08d}"


class Source(Protocol):
    """A source of training cases. It consists of plain data, which the run's record stores to recreate the cases."""

    kind: ClassVar[str]

    def cases(
        self, cache: Path, grid: GridOptions, labeled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
        """The cases on the model grid, stored in ``cache``. Their labels are left out unless ``labeled``."""
        ...

    def describe(self, labeled: bool) -> tuple[TrainingData, ...]:
        """Entries for the metadata of a model trained on these cases, as labeled (``labeled``) or unlabeled cases."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``cls(**data)`` creates an equal source, with tuples for lists."""
        ...


def cache_folder(cache: Path, grid: GridOptions) -> Path:
    """The folder in ``cache`` for cases on this ``grid``, which is created if necessary.

    Runs with other grids use other folders. Cases are stored in HU, so runs with other windows share a folder.
    """
    side = "x".join(f"{spacing:g}" for spacing in grid.spacing) + "mm"
    if grid.shape is not None:
        side = "x".join(map(str, grid.shape)) + "voxels"
    # Cases of versions without the filter are in a folder without the suffix.
    filtered = "-filtered" if grid.anti_aliasing else ""
    folder = cache / f"{side}-{grid.orientation}{filtered}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
