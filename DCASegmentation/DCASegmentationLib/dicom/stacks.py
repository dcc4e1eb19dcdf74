"""The slices of a series as one volume, or as several where a series holds several acquisitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ImageError
from ..imaging.dicom_header import DicomHeader
from ..imaging.dicom_slices import stacked


@dataclass(frozen=True)
class Volume:
    """The ``images`` of a volume in the order of their slices, and ``notes`` on what was left out or how it must be
    resampled."""

    images: tuple[DicomHeader, ...]
    notes: tuple[str, ...] = ()

    @property
    def slices(self) -> int:
        """How many planes it has."""
        return sum(image.frames for image in self.images)


def ordered(images: Sequence[DicomHeader], name: str, resample: bool = False) -> Volume:
    """The images in the order of their slices, from the first voxel plane of the volume on.

    Raises ImageError where they do not fill a volume (see ``dicom_slices.stacked``); ``name`` says of what.
    """
    stack = stacked(images, name, resample)
    by_file = {image.file: image for image in images}
    return Volume(tuple(by_file[str(file)] for file in stack.files), stack.notes)


def volumes(images: Sequence[DicomHeader], name: str, fewest_slices: int, resample: bool = False) -> dict[str, Volume]:
    """The volumes of a series by acquisition number; one, called "", where all slices fill one volume.

    Scanners store the phases of an examination now and then as acquisitions of one series, and enhanced images hold a
    volume in each file. Raises ImageError, as ``ordered`` does, where dividing does not help.
    """
    try:
        return {"": ordered(images, name, resample)}
    except ImageError:
        for part_of in (_acquisition, _file):
            parts: dict[str, list[DicomHeader]] = {}
            for image in images:
                parts.setdefault(part_of(image), []).append(image)
            if len(parts) < 2 or min(sum(one.frames for one in part) for part in parts.values()) < fewest_slices:
                continue
            try:
                return {number: ordered(part, name, resample) for number, part in sorted(parts.items())}
            except ImageError:
                continue
        # What is wrong with the whole says more than what is wrong with a part.
        raise


def _acquisition(image: DicomHeader) -> str:
    return image.acquisition


def _file(image: DicomHeader) -> str:
    return image.file if image.frames > 1 else ""
