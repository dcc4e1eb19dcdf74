"""DICOM archives: the files of a tree sorted into series, the axial CT volumes among them selected, and read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ImageError
from ..imaging.dicom_header import CT_IMAGE, ENHANCED_CT, DicomHeader, is_dicom
from ..imaging.dicom_header import DicomHeader as Header
from ..imaging.dicom_header import read_dicom_header as read_header
from ..imaging.dicom_slices import is_localizer, same_voxels, stacked, together, without_strays
from ..imaging.writers import temporary_folder

__all__ = ["Header", "is_dicom", "read_header"]


def files_below(root: Path, leave_out: Path, unreadable: Callable[[Path, OSError], None]) -> Iterator[Path]:
    """Every file below ``root`` but those below ``leave_out``, folder by folder in the order of their names.

    Links to folders are not followed (they may lead in circles), links to files are. A folder that cannot be listed
    and a link that leads to itself are told to ``unreadable``. Memory: the names of one folder at a time.
    """
    if root.is_file():
        yield root
        return
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # One entry that cannot be looked at must not hide those after it.
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
        waiting += sorted(folders, reverse=True)
        yield from map(Path, sorted(files))


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


# Value 4 of the image type of a multi-energy CT image (DICOM PS3.3 C.8.15.3.7), and vendors' words for the same.
_ENERGY = re.compile(
    r"^(VMI|MAT_.*|EFF_ATOMIC_NUM|ELECTRON_DENSITY|VNC|VUE|.*IODINE.*|.*MONOENERG.*|.*VIRTUAL.*MONO.*|.*MATERIAL.*"
    r"|.*EFFECTIVE.?Z.*|DE.?MAP.*|RHO.?Z|GSI.*)$"
)
_HU = ("", "HU", "US")
# The slice normal may lean so far from the patient's long axis, as in a scan of a spine.
_AXIAL_COSINE = np.cos(np.radians(30.0))


@dataclass(frozen=True)
class Rules:
    """What is taken: series of at least ``fewest_slices``, those computed from others only if ``derived``, those with
    tilted or uneven slices only if they may be resampled (``resample``)."""

    fewest_slices: int = 20
    derived: bool = False
    resample: bool = False


@dataclass(frozen=True)
class Selection:
    """The images to use of a series, none where it is passed over for ``reason``. ``notes`` tell what was left out."""

    images: tuple[Header, ...]
    reason: str = ""
    notes: tuple[str, ...] = ()


def select(series: Series, rules: Rules) -> Selection:
    """The images of ``series`` that make up a CT volume; the first reason against them, if there is one."""
    likely = without_strays(series.images)
    # Where most are no slices, what they are is the reason.
    scan = tuple(likely if 2 * len(likely) > len(series.images) else series.images)
    scan = tuple(image for image in scan if not is_localizer(image))
    reason = _against(scan, rules)
    if reason:
        return Selection((), reason)
    left = [image for image in series.images if image not in scan]
    localizers = sum(map(is_localizer, left))
    others = len(left) - localizers
    notes = []
    if localizers:
        notes.append(f"{localizers} localizer{'s' if localizers > 1 else ''} among the slices left out")
    if others:
        notes.append(f"{others} image{'s' if others > 1 else ''} among the slices left out: dose pages or the like")
    if series.note:
        notes.append(series.note)
    if any(image.lossy for image in scan):
        notes.append("its images were compressed with loss")
    return Selection(scan, notes=tuple(notes))


def _against(scan: tuple[Header, ...], rules: Rules) -> str:
    modalities = sorted({image.modality for image in scan} - {"CT", ""})
    if modalities:
        return f"{', '.join(modalities)}, no CT"
    if not scan:
        return "localizer"
    if any(image.sop_class not in (CT_IMAGE, *ENHANCED_CT, "") for image in scan):
        return "secondary capture or another kind of object, no CT images"
    energy = sorted({value for image in scan for value in image.image_type if _ENERGY.match(value)})
    if energy:
        return f"dual-energy map ({', '.join(energy)})"
    units = sorted({image.rescale_type for image in scan} - set(_HU))
    if units:
        return f"dual-energy or other map: voxels in {', '.join(units)}, not in HU"
    derived = next((image for image in scan if _is_derived(image)), None)
    if derived is not None and not rules.derived:
        return f"derived ({chr(92).join(derived.image_type)})"
    # A scout among the slices, without being called one, is left out when they are stacked.
    placed = [image for image in scan if np.isfinite(image.axes).all()]
    if placed and 2 * sum(map(_is_axial, placed)) <= len(placed):
        return "not axial"
    slices = sum(image.frames for image in scan)
    if slices < rules.fewest_slices:
        return f"only {slices} slice{'s' if slices > 1 else ''}, fewer than {rules.fewest_slices}"
    return ""


def _is_derived(image: Header) -> bool:
    """Lossy compression alone also makes an image DERIVED (DICOM PS3.3 C.7.6.1.1.2), still a PRIMARY one."""
    values = image.image_type
    return "DERIVED" in values[:1] and not (image.lossy and "PRIMARY" in values[1:2])


def _is_axial(image: Header) -> bool:
    normal = np.cross(image.axes[:3], image.axes[3:])
    return bool(abs(normal[2]) >= _AXIAL_COSINE)


@contextmanager
def gathered(files: Sequence[Path], name: str) -> Iterator[Path]:
    """Yields a temporary folder called ``name`` that links to ``files`` and nothing else, in their order.

    So that the one reader of DICOM folders reads them, whatever lies beside them, however long their paths are and in
    whatever encoding their names. Raises ImageError where a file is not there any more or cannot be read.
    """
    with temporary_folder("dca-series") as temporary:
        folder = temporary / (_plain(name) or "series")
        folder.mkdir()
        for number, file in enumerate(files):
            link = folder / f"{number:06d}.dcm"
            _require_readable(file)
            try:
                link.symlink_to(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow the archive's own links
            except OSError:
                # Windows asks for a privilege.
                shutil.copyfile(file, link)
        yield folder


def _require_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ImageError(
            f"{file.name} cannot be read: {error.strerror or error}.", "Check the archive and its permissions."
        ) from None


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)[:60].strip("_")
