"""Generates a phantom: a synthetic CT and its exact labels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import SimpleITK as sitk

from ...errors import Cancelled
from ...organs import AMOS
from ...types import ProgressCallback
from .anatomy import Anatomy
from .person import Contrast, Person, create_rng
from .rendering import add_noise, paint
from .scan import Scan


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT (int16, HU), its labels (uint8, ``organs.AMOS``) on the same grid, and the person."""

    ct: sitk.Image
    labels: sitk.Image
    person: Person


def generate(
    seed: int,
    spacing: tuple[float, float, float] = (1.5, 1.5, 3.0),
    orientation: str = "RAS",
    phase: str = "portal_venous",
    noise_hu: float = 12.0,
    tilt_degrees: float = 0.0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    missing: Collection[str] = (),
) -> Phantom:
    """Generate a synthetic abdominal CT with the 15 organs of AMOS. The same arguments give the same voxels.

    ``seed`` (0 or above) determines the person, independently of the other arguments. ``spacing`` (mm) and
    ``orientation`` (three letters, the directions of the index axes) are in the order of the image's axes (i, j, k).
    ``phase`` is none, arterial, portal_venous or delayed, ``noise_hu`` the SD of the noise. ``tilt_degrees`` (-30 to
    30) gives oblique direction cosines. ``missing`` holds the keys of organs that were surgically removed. A voxel has
    the label of the structure that contains its center. ``progress(fraction, message)`` and ``cancelled()`` are called
    between slabs of the scan. Raises ValueError for invalid arguments, and Cancelled if ``cancelled()`` returns True.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or above, not {seed}")
    if unknown := sorted(set(missing) - set(AMOS.by_key)):
        raise ValueError(f"missing must hold keys of AMOS organs, not {unknown[0]!r}")
    person = Person.draw(seed)
    contrast = Contrast.from_person(person, phase)
    report = partial(_report, progress, cancelled)
    report(0.0)
    anatomy = _build_anatomy(seed, frozenset(missing))
    scan = Scan.from_anatomy(anatomy, spacing, orientation, tilt_degrees)
    clean, labels = paint(scan, anatomy, contrast, lambda fraction: report(0.1 + 0.85 * fraction))
    hu = add_noise(clean, spacing, noise_hu, create_rng(seed, "noise"))
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    report(1.0)
    return Phantom(scan.make_image(ct), scan.make_image(labels), person)


@lru_cache(maxsize=4)
def _build_anatomy(seed: int, missing: frozenset[str]) -> Anatomy:
    """Build the anatomy of a person, which takes 1 to 2 s. The last ones are cached."""
    return Anatomy.from_person(Person.draw(seed), missing)


def _report(progress: ProgressCallback | None, cancelled: Callable[[], bool] | None, fraction: float) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled
    if progress is not None:
        progress(fraction, "Generating the phantom")
