"""DICOM archives: sorts the files of a folder tree into series, and selects the axial CT volumes among them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ImageError, get_reason
from ..imaging.dicom_header import CT_IMAGE, ENHANCED_CT, DicomHeader, is_dicom
from ..imaging.dicom_header import DicomHeader as Header
from ..imaging.dicom_header import read_dicom_header as read_header
from ..imaging.dicom_slices import (
    find_energy_types,
    find_non_hu_units,
    group_by_orientation,
    have_same_voxels,
    is_localizer,
    merge_single_slice_series,
    select_slice_images,
    stack_slices,
)
from ..imaging.writers import temporary_folder

__all__ = ["Header", "is_dicom", "read_header"]


def walk_files(root: Path, leave_out: Path, unreadable: Callable[[Path, OSError], None]) -> Iterator[Path]:
    """Yield every file below ``root`` except those below ``leave_out``, folder by folder in the order of their names.

    Links to folders are not followed, as they may form loops; links to files are. ``unreadable`` is called for a folder
    that cannot be listed and for a link that leads to itself. Memory: the names of one folder at a time.
    """
    if root.is_file():
        yield root
        return
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # An entry that cannot be accessed must not hide the entries after it.
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            if Path(entry.path).absolute() != leave_out:
                                folders.append(entry.path)
                        elif entry.is_file():
                            files.append(entry.path)
                    except OSError as error:
                        unreadable(Path(entry.path), error)
        except OSError as error:
            unreadable(Path(folder), error)
        pending += sorted(folders, reverse=True)
        yield from map(Path, sorted(files))


@dataclass(frozen=True)
class Volume:
    """The ``images`` of a volume in the order of their slices, and ``notes`` on images left out and on resampling."""

    images: tuple[DicomHeader, ...]
    notes: tuple[str, ...] = ()

    @property
    def slices(self) -> int:
        """The number of planes in the volume."""
        return sum(image.frames for image in self.images)


def order_slices(images: Sequence[DicomHeader], name: str, resample: bool = False) -> Volume:
    """The images in the order of their slices, starting at the first voxel plane of the volume.

    Raises ImageError if they do not form a volume (see ``dicom_slices.stack_slices``); ``name`` is used in the message.
    """
    stack = stack_slices(images, name, resample)
    by_file = {image.file: image for image in images}
    return Volume(tuple(by_file[str(file)] for file in stack.files), stack.notes)


def split_into_volumes(
    images: Sequence[DicomHeader], name: str, min_slices: int, resample: bool = False
) -> dict[str, Volume]:
    """The volumes of a series by acquisition number; a single one, with the key "", if all slices form one volume.

    Scanners sometimes store the phases of an examination as acquisitions of one series, and each file of enhanced
    images contains a volume. Raises ImageError, as ``order_slices`` does, if splitting the series does not help.
    """
    try:
        return {"": order_slices(images, name, resample)}
    except ImageError:
        for part_of in (_get_acquisition, _get_multi_frame_file):
            parts: dict[str, list[DicomHeader]] = {}
            for image in images:
                parts.setdefault(part_of(image), []).append(image)
            if part_of is _get_acquisition and "" in parts:
                # An image without a number may belong to any acquisition.
                continue
            if len(parts) < 2 or min(sum(one.frames for one in part) for part in parts.values()) < min_slices:
                continue
            try:
                return {number: order_slices(part, name, resample) for number, part in sorted(parts.items())}
            except ImageError:
                continue
        # The problem of the whole series is more informative than that of a part.
        raise


def _get_acquisition(image: DicomHeader) -> str:
    return image.acquisition


def _get_multi_frame_file(image: DicomHeader) -> str:
    return image.file if image.frames > 1 else ""


@dataclass(frozen=True)
class Series:
    """The images of one series in one study of one patient, in the order in which they were found.

    ``uid`` is empty if the archive was anonymized to the point that its series have none. ``note`` says how the images
    were combined if they have different UIDs.
    """

    patient: str
    study: str
    uid: str
    images: tuple[Header, ...]
    note: str = ""

    @property
    def kind(self) -> tuple[str, ...]:
        """What distinguishes it from other series without a UID in the same folder."""
        return *_get_signature(self.images[0]), ",".join(f"{cosine:.3f}" for cosine in self.images[0].axes)

    @property
    def description(self) -> str:
        """The series description; empty if no image states one."""
        return next((image.description for image in self.images if image.description), "")

    @property
    def study_date(self) -> str:
        """The study date as stated (YYYYMMDD); empty if no image states one."""
        return next((image.study_date for image in self.images if image.study_date), "")


def group(headers: Iterable[Header]) -> list[Series]:
    """The series of the images ``headers``, in the order of their first files.

    The same series UID in two patients or studies, a result of careless anonymization, makes two series. Images without
    a series UID belong together if folder, description, size and orientation agree; so do single images whose series
    UIDs all differ (see ``dicom_slices.merge_single_slice_series``).
    """
    by_key: dict[tuple[str, ...], list[Header]] = {}
    for header in headers:
        key: tuple[str, ...] = (header.patient, header.study, header.series)
        if not header.series:
            key = (*key, str(Path(header.file).parent), *_get_signature(header))
        by_key.setdefault(key, []).append(header)
    found: list[list[Header]] = []
    for images in by_key.values():
        found += [images] if images[0].series else group_by_orientation(images)
    return [Series(*_get_ids(images[0]), tuple(images), note) for images, note in merge_single_slice_series(found)]


def _get_signature(image: Header) -> tuple[str, ...]:
    return image.modality, image.description, f"{image.columns}x{image.rows}"


def _get_ids(image: Header) -> tuple[str, str, str]:
    return image.patient, image.study, image.series


def remove_duplicates(images: Iterable[Header]) -> tuple[list[Header], int]:
    """The images without duplicates (same instance UID, same voxels), and the number of duplicates.

    Raises ValueError if two different images have the same instance UID, and OSError if a file cannot be read.
    """
    kept: dict[str, Header] = {}
    without_uid: list[Header] = []
    copies = 0
    for image in images:
        if not image.instance:
            without_uid.append(image)
        elif image.instance not in kept:
            kept[image.instance] = image
        else:
            first = kept[image.instance]
            if first.position != image.position or not have_same_voxels(first, image):
                names = f"{Path(first.file).name} and {Path(image.file).name}"
                raise ValueError(f"{names} are different images with the same UID")
            copies += 1
    return [*kept.values(), *without_uid], copies


NOT_AXIAL = "not axial"
# The largest angle between slice normal and the patient's long axis; scans of the spine are often tilted.
_AXIAL_COSINE = np.cos(np.radians(30.0))


@dataclass(frozen=True)
class Rules:
    """What is selected: series of at least ``min_slices`` slices.

    Series computed from others are selected only if ``derived``, and those with tilted or unevenly spaced slices only
    if they may be resampled (``resample``).
    """

    min_slices: int = 20
    derived: bool = False
    resample: bool = False


@dataclass(frozen=True)
class Selection:
    """The images of a series to use, or none and the ``reason`` for skipping it. ``notes`` say what was left out."""

    images: tuple[Header, ...]
    reason: str = ""
    notes: tuple[str, ...] = ()


def select(series: Series, rules: Rules) -> Selection:
    """Select the images of ``series`` that form a CT volume, or give the first reason not to use it."""
    likely = select_slice_images(series.images)
    # If most images are not slices, all are kept, so that the reason says what they are.
    scan = tuple(likely if 2 * len(likely) > len(series.images) else series.images)
    scan = tuple(image for image in scan if not is_localizer(image))
    reason = _find_skip_reason(scan, rules)
    if reason:
        return Selection((), reason)
    left_out = [image for image in series.images if image not in scan]
    localizers = sum(map(is_localizer, left_out))
    others = len(left_out) - localizers
    notes = []
    if localizers:
        what = "1 localizer was" if localizers == 1 else f"{localizers} localizers were"
        notes.append(f"{what} left out")
    if others:
        what = "1 image was" if others == 1 else f"{others} images were"
        notes.append(f"{what} left out (such as a dose report)")
    if series.note:
        notes.append(series.note)
    if any(image.lossy for image in scan):
        notes.append("the images have lossy compression")
    return Selection(scan, notes=tuple(notes))


def _find_skip_reason(scan: tuple[Header, ...], rules: Rules) -> str:
    modalities = sorted({image.modality for image in scan} - {"CT", ""})
    if modalities:
        return f"{', '.join(modalities)}, not CT"
    if not scan:
        return "localizer"
    if any(image.sop_class not in (CT_IMAGE, *ENHANCED_CT, "") for image in scan):
        return "secondary capture or another object, not CT images"
    energy = find_energy_types(scan)
    if energy:
        return f"dual-energy map ({', '.join(energy)})"
    units = find_non_hu_units(scan)
    if units:
        return f"dual-energy or other map: voxels in {', '.join(units)}, not in HU"
    derived = next((image for image in scan if _is_derived(image)), None)
    if derived is not None and not rules.derived:
        return f"derived ({chr(92).join(derived.image_type)})"
    # A localizer that is not marked as one is left out when the slices are stacked.
    placed = [image for image in scan if np.isfinite(image.axes).all()]
    if placed and 2 * sum(map(_is_axial, placed)) <= len(placed):
        return NOT_AXIAL
    slices = sum(image.frames for image in scan)
    if slices < rules.min_slices:
        return f"only {slices} slice{'s' if slices > 1 else ''}, fewer than {rules.min_slices}"
    return ""


def _is_derived(image: Header) -> bool:
    """Whether the image was computed from others.

    Lossy compression alone also makes an image DERIVED (DICOM PS3.3 C.7.6.1.1.2), but it is still PRIMARY.
    """
    values = image.image_type
    return "DERIVED" in values[:1] and not (image.lossy and "PRIMARY" in values[1:2])


def _is_axial(image: Header) -> bool:
    normal = np.cross(image.axes[:3], image.axes[3:])
    return bool(abs(normal[2]) >= _AXIAL_COSINE)


@contextmanager
def gathered(files: Sequence[Path], name: str) -> Iterator[Path]:
    """Yield a temporary folder called ``name`` that contains links to exactly ``files``, in their order.

    It allows the reader of DICOM folders to read them whatever other files are in their folder, and whatever the length
    and encoding of their paths. Raises ImageError if a file is missing or cannot be read.
    """
    with temporary_folder("dca-series") as temporary:
        folder = temporary / (_make_ascii_name(name) or "series")
        folder.mkdir()
        for number, file in enumerate(files):
            link = folder / f"{number:06d}.dcm"
            _require_readable(file)
            try:
                link.symlink_to(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow the archive's own links
            except OSError:
                # On Windows, links need a privilege.
                shutil.copyfile(file, link)
        yield folder


def _require_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ImageError(
            f"{file.name} cannot be read: {get_reason(error)}.", "Check the archive and its permissions."
        ) from None


def _make_ascii_name(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)[:60].strip("_")
