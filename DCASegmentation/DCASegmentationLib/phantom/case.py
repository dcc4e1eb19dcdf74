"""One synthetic case: a CT and its exact labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from DCASegmentationLib.phantom.anatomy import Anatomy
from DCASegmentationLib.phantom.contrast import Contrast
from DCASegmentationLib.phantom.noise import add_noise
from DCASegmentationLib.phantom.painting import paint
from DCASegmentationLib.phantom.person import Person, stream
from DCASegmentationLib.phantom.scan import Scan


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
) -> Phantom:
    """A synthetic abdominal CT with all 15 organs of AMOS; the same arguments give the same voxels.

    ``seed`` (0 or above) says who the person is, whatever the other arguments. ``spacing`` (mm) and ``orientation``
    (three letters, the directions the index axes run in) belong to the image's axes in order. ``phase``: none,
    arterial, portal_venous or delayed. ``noise_hu``: SD of the noise. ``tilt_degrees`` (-30 to 30): gives oblique
    direction cosines. The label of a voxel is that of the structure its center lies in.
    Raises ValueError for arguments that make no scan.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or above, not {seed}")
    person = Person.draw(seed)
    contrast = Contrast.of(person, phase)
    anatomy = Anatomy.of(person)
    scan = Scan.around(anatomy, spacing, orientation, tilt_degrees)
    clean, labels = paint(scan, anatomy, contrast)
    hu = add_noise(clean, spacing, noise_hu, stream(seed, "noise"))
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return Phantom(scan.image(ct), scan.image(labels), person)
