"""Images of an archive put together into series, copies of the same image taken once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..imaging.dicom_pixels import same_voxels
from ..imaging.dicom_slices import together
from .headers import Header


@dataclass(frozen=True)
class Series:
    """The images of one series of one patient's study, in the order in which they were found.

    ``uid`` is empty where the archive was anonymized so far that its series have none. ``note`` says how its images
    were put together where they do not have one UID.
    """

    patient: str
    study: str
    uid: str
    images: tuple[Header, ...]
    note: str = ""

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells it from other series without a UID in the same folder."""
        return _kind(self.images[0])

    @property
    def description(self) -> str:
        return next((image.description for image in self.images if image.description), "")

    @property
    def study_date(self) -> str:
        return next((image.study_date for image in self.images if image.study_date), "")


def group(headers: Iterable[Header]) -> list[Series]:
    """The series that ``headers`` belong to, in the order of their first files.

    The same series UID in two patients or studies, as careless anonymization leaves it, makes two series. Images
    without a series UID belong together where folder, description, size and orientation agree; so do single images
    that each have a series UID of their own (see ``dicom_slices.together``).
    """
    found: dict[tuple[str, ...], list[Header]] = {}
    for header in headers:
        key: tuple[str, ...] = (header.patient, header.study, header.series)
        if not header.series:
            key = (*key, str(Path(header.file).parent), *_kind(header))
        found.setdefault(key, []).append(header)
    return [Series(*_names(images[0]), tuple(images), note) for images, note in together(list(found.values()))]


def _kind(image: Header) -> tuple[str, ...]:
    axes = ",".join(f"{cosine:.3f}" for cosine in image.axes)
    return image.modality, image.description, f"{image.columns}x{image.rows}", axes


def _names(image: Header) -> tuple[str, str, str]:
    return image.patient, image.study, image.series


def without_copies(images: Iterable[Header]) -> tuple[list[Header], int]:
    """The images with every copy (same instance UID, same voxels) left out, and how many those were.

    Raises ValueError where two different images have the same instance UID, OSError where a file cannot be read.
    """
    kept: dict[str, Header] = {}
    nameless: list[Header] = []
    copies = 0
    for image in images:
        if not image.instance:
            nameless.append(image)
        elif image.instance not in kept:
            kept[image.instance] = image
        else:
            first = kept[image.instance]
            if first.position != image.position or not same_voxels(first, image):
                names = f"{Path(first.file).name} and {Path(image.file).name}"
                raise ValueError(f"{names} are different images with the same UID")
            copies += 1
    return [*kept.values(), *nameless], copies
