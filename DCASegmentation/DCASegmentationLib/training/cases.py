"""Training cases on the model grid, kept on disk and in memory."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import UserError
from ..imaging.grid import model_grid
from ..imaging.resampling import resample
from .options import GridOptions

# Positions remembered for each organ of a case: enough to sample from, small enough to keep.
_POSITIONS = 4000


@dataclass(frozen=True)
class Case:
    """One CT on the model grid.

    ``hu`` is int16 (depth, height, width); ``labels`` is uint8 of the same shape, or None for an unlabelled case.
    ``unknown`` are the labels that the label map does not tell of: where it says background, they may be.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray | None
    unknown: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.labels is not None and self.unknown and np.isin(self.labels, self.unknown).any():
            raise ValueError(f"case {self.name} has voxels of labels that are said to be unknown in it")

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

    def voxel_counts(self, n_labels: int) -> np.ndarray:
        """Voxels of each label 0 to ``n_labels``, int64."""
        if self.labels is None:
            return np.zeros(n_labels + 1, dtype=np.int64)
        return np.bincount(self.labels.ravel(), minlength=n_labels + 1).astype(np.int64)


def prepare_case(
    name: str, ct: sitk.Image, labels: sitk.Image | None, grid: GridOptions, unknown: tuple[int, ...] = ()
) -> Case:
    """A CT in HU, and its label map if there is one, on the model grid; ``unknown`` as in ``Case``."""
    target = model_grid(ct, grid.spacing, grid.orientation)
    hu = sitk.GetArrayFromImage(resample(ct, target, "linear"))
    hu = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    if labels is None:
        return Case(name, hu, None)
    on_grid = sitk.GetArrayFromImage(resample(labels, target, "nearest", outside=0)).astype(np.uint8)
    return Case(name, hu, on_grid, unknown)


def save_case(case: Case, path: Path) -> None:
    """Write a case as NPZ, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        if case.labels is None:
            np.savez(file, hu=case.hu)
        else:
            np.savez(file, hu=case.hu, labels=case.labels, unknown=np.array(case.unknown, np.int64))
    part.replace(path)


def load_case(path: Path) -> Case:
    """Read a case written by ``save_case``. Raises UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            unknown = tuple(int(label) for label in arrays.get("unknown", ()))
            return Case(path.stem, arrays["hu"], arrays.get("labels"), unknown)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"The cached case {path} cannot be read ({error}).", "Delete it; it is made again.") from error
