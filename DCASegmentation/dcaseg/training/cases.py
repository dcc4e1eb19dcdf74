"""Training cases on the model grid, kept on disk and in memory."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import SimpleITK as sitk

from ..errors import OutputError, UserError
from ..imaging.grid import grid_of_shape, model_grid
from ..imaging.intensity import standardize, window
from ..imaging.resampling import resample
from ..models.metadata import TrainingData
from ..temp_paths import partial_name
from ..types import ProgressCallback
from .options import GridOptions

# Positions remembered for each organ of a case: enough to sample from, small enough to keep.
_POSITIONS = 4000

# In a run's folder: cases that a strategy has labelled itself.
_PSEUDO = "pseudo"


@dataclass(frozen=True)
class Case:
    """One CT on the model grid.

    ``hu`` is int16 (depth, height, width); ``labels`` is an array of unsigned integers of the same shape, or None for
    an unlabelled case. ``unannotated`` are the labels that the label map does not tell of: where it says background,
    they may be. ``spacing`` (depth, height, width) in mm is its own on a grid of fixed shape, and None where it is the
    grid's. ``ignored`` are booleans like ``labels``: voxels without a label, such as those of a pseudo-labelled case of
    which nobody was sure.

    Raises UserError where the label map holds a label that is said to be unknown.
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
        found = np.intersect1d(self.labels, self.unannotated)
        if len(found):
            shown = ", ".join(str(label) for label in found[:5])
            raise UserError(
                f"The label map of {self.name} has voxels of label {shown}, which its entry lists as unannotated.",
                "Take the label out of 'unannotated', or out of the label map.",
            )

    @cached_property
    def positions(self) -> dict[int, np.ndarray]:
        """For each organ present, voxel positions (n, 3) to center patches on: a fixed random subset of its own."""
        if self.labels is None:
            return {}
        generator = np.random.default_rng(0)
        found: dict[int, np.ndarray] = {}
        for label in np.unique(self.labels):
            if label == 0:
                continue
            flat = np.flatnonzero(self.labels == label)
            if len(flat) > _POSITIONS:
                flat = generator.choice(flat, _POSITIONS, replace=False)
            found[int(label)] = np.stack(np.unravel_index(flat, self.labels.shape), axis=1)
        return found

    def voxel_size(self, grid: GridOptions) -> tuple[float, float, float]:
        """Depth, height and width of a voxel in mm."""
        x, y, z = grid.spacing
        return self.spacing or (z, y, x)

    def scaled(self, hu: np.ndarray, grid: GridOptions) -> np.ndarray:
        """``hu``, the whole or a part of its voxels, as the network takes them: float32, 0..1 for a window."""
        if grid.scaling == "window":
            return window(hu, *grid.hu_window)
        return standardize(hu, *self._moments)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        return float(self.hu.mean(dtype=np.float64)), float(self.hu.std(dtype=np.float64))

    def voxel_counts(self, n_labels: int) -> np.ndarray:
        """Voxels of each label 0 to ``n_labels``, int64."""
        lacking = max(n_labels + 1 - len(self._counts), 0)
        return np.pad(self._counts, (0, lacking))

    @cached_property
    def _counts(self) -> np.ndarray:
        if self.labels is None:
            return np.zeros(1, np.int64)
        counts = np.bincount((self.labels if self.ignored is None else self.labels[~self.ignored]).ravel())
        return counts.astype(np.int64)


def prepare_case(
    name: str, ct: sitk.Image, labels: sitk.Image | None, grid: GridOptions, unannotated: tuple[int, ...] = ()
) -> Case:
    """A CT in HU, and its label map if there is one, on the model grid; ``unannotated`` as in ``Case``.

    ``labels`` are whole numbers from 0 to 65535, as ``read_labels`` gives them; they stay what they are. Raises
    UserError for others, and as ``Case`` does.
    """
    target, spacing = model_grid(ct, grid.spacing, grid.orientation), None
    if grid.shape is not None:
        target = grid_of_shape(ct, grid.shape, grid.orientation)
        spacing = (target.spacing[2], target.spacing[1], target.spacing[0])
    hu = sitk.GetArrayFromImage(resample(ct, target, anti_aliasing=grid.anti_aliasing))
    hu = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    if labels is None:
        return Case(name, hu, None, spacing=spacing)
    on_grid = sitk.GetArrayFromImage(resample(labels, target, "nearest", outside=0))
    return Case(name, hu, _narrowed(on_grid, name), unannotated, spacing)


def _narrowed(labels: np.ndarray, name: str) -> np.ndarray:
    """The same whole numbers as uint8, or as uint16 where 255 is not enough. Raises UserError for any others."""
    low, high = (labels.min(), labels.max()) if labels.size else (0, 0)
    dtype = np.uint8 if high <= 255 else np.uint16
    # Compared, because a conversion wraps and cuts off without a word.
    narrowed = labels.astype(dtype) if low >= 0 and high <= 65535 else None
    if narrowed is None or not np.array_equal(narrowed, labels):
        raise UserError(
            f"The label map of {name} has labels that are not whole numbers from 0 to 65535.", "Renumber its labels."
        )
    return narrowed


def save_case(case: Case, path: Path) -> None:
    """Write a case as NPZ, whole or not at all; processes that write the same one do not disturb each other.

    Raises OutputError where the disk is full or the folder cannot be written.
    """
    part = partial_name(path)
    arrays = {"hu": case.hu}
    if case.labels is not None:
        arrays |= {"labels": case.labels, "unannotated": np.array(case.unannotated, np.int64)}
    if case.spacing is not None:
        arrays["spacing"] = np.array(case.spacing)
    if case.ignored is not None:
        arrays["ignored"] = case.ignored
    try:
        with part.open("xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"The prepared case {path} cannot be written ({error.strerror or error}).",
            "Make room, or choose another folder with --cache.",
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def load_case(path: Path) -> Case:
    """Read a case written by ``save_case``. Raises UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            unannotated = tuple(int(label) for label in arrays.get("unannotated", arrays.get("unknown", ())))
            sides = arrays.get("spacing")
            spacing = None if sides is None else (float(sides[0]), float(sides[1]), float(sides[2]))
            return Case(path.stem, arrays["hu"], arrays.get("labels"), unannotated, spacing, arrays.get("ignored"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"The cached case {path} cannot be read ({error}).", "Delete it; it is made again.") from error


def write_pseudo_cases(folder: Path, step: int, cases: Sequence[Case]) -> None:
    """Keep the pseudo-labelled ``cases`` that a run learns from since ``step``, in its ``folder``, all or none."""
    target = _pseudo_folder(folder, step)
    part = target.with_name(target.name + ".part")
    for left_over in (part, target):
        shutil.rmtree(left_over, ignore_errors=True)
    part.mkdir(parents=True)
    for index, case in enumerate(cases):
        # The number keeps their order, and cases of one name apart.
        save_case(case, part / f"{index:04d} {case.name.replace('/', '_')}.npz")
    part.rename(target)


def read_pseudo_cases(folder: Path, step: int) -> list[Case]:
    """The pseudo-labelled cases that a run in ``folder`` learns from when it goes on at ``step``.

    Those taken at ``step`` itself are not among them: they are about to be made anew.
    """
    found = sorted((folder / _PSEUDO).glob("step-*"))
    before = [path for path in found if path.suffix != ".part" and int(path.name.removeprefix("step-")) < step]
    return [load_case(path) for path in sorted(before[-1].glob("*.npz"))] if before else []


def _pseudo_folder(folder: Path, step: int) -> Path:
    return folder / _PSEUDO / f"step-{step:08d}"


class Source(Protocol):
    """Cases of one kind, described well enough to make them again: plain data that goes into the run's record."""

    kind: ClassVar[str]

    def cases(
        self, cache: Path, grid: GridOptions, labelled: bool, progress: ProgressCallback | None = None
    ) -> list[Case]:
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
