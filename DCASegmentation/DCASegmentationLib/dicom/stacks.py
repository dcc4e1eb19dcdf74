"""The slices of a series as one volume, or as several where a series holds several acquisitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ImageError
from ..imaging.dicom_slices import Slice, sorted_slices
from .headers import Header


def ordered(images: Sequence[Header], name: str) -> list[Header]:
    """The images in the order of their slices, from the first voxel plane of the volume on.

    Raises ImageError where they do not fill a volume: slices that are missing, doubled, unevenly spaced, tilted, not
    parallel or of different size; ``name`` says of what.
    """
    by_file = {image.file: image for image in images}
    return [by_file[str(one.file)] for one in sorted_slices([_slice(image) for image in images], name)]


def volumes(images: Sequence[Header], name: str, fewest_slices: int) -> dict[str, list[Header]]:
    """The ordered volumes of a series by acquisition number; one, called "", where all slices fill one volume.

    Scanners store the phases of an examination now and then as acquisitions of one series. Raises ImageError, as
    ``ordered`` does, where dividing does not help.
    """
    try:
        return {"": ordered(images, name)}
    except ImageError:
        parts: dict[str, list[Header]] = {}
        for image in images:
            parts.setdefault(image.acquisition, []).append(image)
        if len(parts) < 2 or min(len(part) for part in parts.values()) < fewest_slices:
            raise
        try:
            return {number: ordered(part, name) for number, part in sorted(parts.items())}
        except ImageError:
            pass
        # What is wrong with the whole says more than what is wrong with a part.
        raise


def _slice(image: Header) -> Slice:
    return Slice(
        file=Path(image.file),
        series_uid=image.series,
        modality=image.modality,
        description=image.description,
        size=(image.columns, image.rows, image.frames),
        values_per_voxel=image.values_per_voxel,
        spacing=(image.spacing[0], image.spacing[1]),
        position=np.array(image.position),
        axes=np.reshape(image.axes, (2, 3)),
    )
