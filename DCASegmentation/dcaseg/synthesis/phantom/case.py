"""One synthetic case: a CT and its exact labels."""

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
from .person import Contrast, Person, stream
from .rendering import add_noise, paint
from .scan import Scan


@dataclass(frozen=True)
class Phantom:
    """``ct`` (int16, HU), ``labels`` (uint8, organs.AMOS) on the same grid, and the ``person``."""

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
    """A synthetic abdominal CT with the 15 organs of AMOS; the same arguments give the same voxels.

    ``seed`` (0 or above) says who the person is, whatever the other arguments. ``spacing`` (mm) and ``orientation``
    (three letters, the directions the index axes run in) belong to the image's axes in order. ``phase``: none,
    arterial, portal_venous or delayed. ``noise_hu``: SD of the noise. ``tilt_degrees`` (-30 to 30): gives oblique
    direction cosines. ``missing``: keys of the organs this person has lost to surgery. The label of a voxel is that of
    the structure its center lies in.
    ``progress(fraction, message)`` and ``cancelled()`` are called between slabs of the scan.
    Raises ValueError for arguments that make no scan and Cancelled when told to stop.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or above, not {seed}")
    if unknown := sorted(set(missing) - set(AMOS.by_key)):
        raise ValueError(f"missing must name organs of AMOS, not {unknown[0]!r}")
    person = Person.draw(seed)
    contrast = Contrast.of(person, phase)
    tell = partial(_tell, progress, cancelled)
    tell(0.0)
    anatomy = _anatomy(seed, frozenset(missing))
    scan = Scan.around(anatomy, spacing, orientation, tilt_degrees)
    clean, labels = paint(scan, anatomy, contrast, lambda share: tell(0.1 + 0.85 * share))
    hu = add_noise(clean, spacing, noise_hu, stream(seed, "noise"))
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    tell(1.0)
    return Phantom(scan.image(ct), scan.image(labels), person)


@lru_cache(maxsize=4)
def _anatomy(seed: int, missing: frozenset[str]) -> Anatomy:
    """Building a person takes a second or two; one who is scanned again is remembered."""
    return Anatomy.of(Person.draw(seed), missing)


def _tell(progress: ProgressCallback | None, cancelled: Callable[[], bool] | None, fraction: float) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled
    if progress is not None:
        progress(fraction, "Making the phantom")
