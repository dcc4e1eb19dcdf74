"""Reading of one CT series from a folder of DICOM files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, get_reason
from .dicom_header import DicomHeader, is_dicom, read_dicom_header
from .dicom_slices import (
    Stack,
    compute_spacing_deviation,
    find_energy_types,
    merge_single_slice_series,
    read_hu_planes,
    stack_slices,
)
from .file_errors import require_text_name
from .geometry import ROUNDING_TOLERANCE_VOXELS, Placement, resample_to_orthogonal_grid
from .intensity import stack_planes
from .itk_environment import no_itk_warnings
from .size_limits import require_allowed_size


def read_dicom_folder(folder: Path, series: str | None, notes: list[str], resample: bool) -> sitk.Image:
    """Read the one CT series in ``folder`` (HU, 3D), with its slices ordered by position.

    ``series`` selects one of several series: its number in the list of the error message, or its SeriesInstanceUID.
    Files that are not DICOM images (a DICOMDIR, a report, a text) are skipped. ``notes`` receives one sentence for each
    correction. ``resample`` allows resampling of tilted or unevenly spaced slices.

    Returns int16 if every voxel fits, else float32. Memory: twice the volume.

    Raises ImageError if the folder contains no DICOM image, several series but no selection, another modality than CT,
    or a damaged file, and if its slices do not form a volume (see ``dicom_slices.stack_slices``).
    """
    found = _find_series(folder)
    if not found:
        raise _make_no_dicom_error(folder)
    chosen, note = _select_series(found, series, folder.name)
    notes += [note] if note else []
    notes += note_on_lost_slices(chosen)
    return _read_volume(chosen, folder.name, notes, resample)


def read_dicom_files(files: Sequence[Path], name: str, notes: list[str], resample: bool) -> sitk.Image:
    """The volume of the images in ``files``, read as by ``read_dicom_folder``."""
    images = [image for file in files if (image := read_dicom_image_header(file)) is not None]
    return _read_volume(images, name, notes, resample)


def _read_volume(images: list[DicomHeader], name: str, notes: list[str], resample: bool) -> sitk.Image:
    try:
        stack = stack_slices(images, name, resample)
        notes += stack.notes
        if energy := find_energy_types(one.image for one in stack.slices):
            notes.append(
                f"{name} is an image computed from dual-energy data ({', '.join(energy)}), not a usual CT: its values "
                "may not be HU. Check that it is the right series."
            )
        columns, rows = stack.slices[0].size
        require_allowed_size((columns, rows, len(stack.slices)), name)
        with no_itk_warnings():
            array = stack_planes(_read_planes(stack), (len(stack.slices), rows, columns))
    except OSError as error:
        where = error.filename or name
        raise ImageError(f"{where} cannot be read: {get_reason(error)}.", "Check its permissions.") from None
    return _create_image(array, stack, name, notes)


def _find_series(folder: Path) -> list[tuple[list[DicomHeader], str]]:
    """The series of DICOM images in ``folder``, in the order of their UIDs, each with a note if they were merged.

    The same UID in two patients or studies, a result of careless anonymization, makes two series.
    """
    series: dict[tuple[str, str, str], list[DicomHeader]] = {}
    try:
        for file in sorted(entry for entry in folder.iterdir() if entry.is_file()):
            require_text_name(file)
            image = read_dicom_image_header(file)
            if image is not None:
                series.setdefault((image.series, image.patient, image.study), []).append(image)
    except OSError as error:
        where = error.filename or folder
        raise ImageError(f"{where} cannot be read: {get_reason(error)}.", "Check its permissions.") from None
    return merge_single_slice_series([images for _, images in sorted(series.items())])


def read_dicom_image_header(file: Path) -> DicomHeader | None:
    """The header of a DICOM image; None if the file is not a DICOM image.

    Raises ImageError if it is damaged, and OSError if it cannot be read.
    """
    try:
        return read_dicom_header(file)
    except ValueError as error:
        # Skipping the file would silently shorten the volume.
        raise ImageError(
            f"{file.name} in {file.parent.name} is an incomplete or damaged DICOM file: {error}.",
            "Copy or export the series again, or remove the file if it does not belong to the series.",
        ) from None


def _select_series(
    found: Sequence[tuple[list[DicomHeader], str]], series: str | None, name: str
) -> tuple[list[DicomHeader], str]:
    """The only one of the series, or the one that ``series`` selects."""
    if series is None and len(found) == 1:
        return found[0]
    by_uid = [each for each in found if each[0][0].series == series]
    if len(by_uid) == 1:
        return by_uid[0]
    if not by_uid and series is not None and series.isdecimal() and 1 <= int(series) <= len(found):
        return found[int(series) - 1]
    are_several_patients = len({images[0].patient for images, _ in found}) > 1
    listed = "; ".join(
        f"[{number}] {_describe_series(images, are_several_patients)}"
        for number, (images, _) in enumerate(found, start=1)
    )
    contents = f"{name} contains {len(found)} series: {listed}."
    if series is None:
        raise ImageError(contents, "Select one with --series and its number or UID.")
    if by_uid:
        raise ImageError(f"{series} is the UID of {len(by_uid)} series: {contents}", "Select one by its number.")
    raise ImageError(f"There is no series {series}: {contents}", "Select one of these by its number or UID.")


def _describe_series(images: list[DicomHeader], with_patient: bool) -> str:
    first, slices = images[0], sum(image.frames for image in images)
    count = f"{slices} slice{'s' if slices != 1 else ''}"
    modality, description = first.modality or "unknown modality", first.description or "no description"
    patient = f", patient {first.patient or 'unknown'}" if with_patient else ""
    return f"{modality}, {description}, {count}{patient}, UID {first.series}"


def _read_planes(stack: Stack) -> Iterator[np.ndarray]:
    """The planes in order. Frames of one file often follow each other, so each file is opened only once for them."""
    for _, same in groupby(stack.slices, key=lambda one: one.image.file):
        slices = list(same)
        yield from read_hu_planes(slices[0].image, [one.number for one in slices])


def _create_image(array: np.ndarray, stack: Stack, name: str, notes: list[str]) -> sitk.Image:
    spacing = stack.slices[0].frame.spacing
    heights, positions = stack.heights, stack.positions
    frames_of_reference = {one.image.frame_of_reference for one in stack.slices}
    if len(frames_of_reference) > 1:
        notes.append(
            f"The slices of {name} have {len(frames_of_reference)} different frames of reference; they were combined "
            "by position."
        )
    if not stack.even:
        array = _resample_evenly(array, heights, name)
        gaps = np.diff(heights)
        notes.append(
            f"The slices of {name} are {gaps.min():.3g} to {gaps.max():.3g} mm apart; they were resampled to "
            f"{len(array)} evenly spaced slices."
        )
    elif (moved := compute_spacing_deviation(heights)) > ROUNDING_TOLERANCE_VOXELS:
        notes.append(
            f"The slices of {name} are not quite evenly spaced; they were moved by up to {moved:.2g} slice spacings."
        )
    volume = sitk.GetImageFromArray(array)
    step = (positions[-1] - positions[0]) / (len(array) - 1)
    normal = np.cross(stack.axes[0], stack.axes[1])
    columns = np.stack([stack.axes[0] * spacing[0], stack.axes[1] * spacing[1], step], axis=1)
    if not stack.upright:
        tilt = np.degrees(np.arccos(min(1.0, float(step @ normal) / float(np.linalg.norm(step)))))
        notes.append(
            f"{name} was scanned with the gantry tilted by {tilt:.1f} degrees; it was resampled to a right-angled grid."
        )
        return resample_to_orthogonal_grid(volume, Placement(columns, positions[0]), name)
    # The center of the volume stays in place, so that no voxel moves by more than half a pixel.
    to_side = (step - (step @ normal) * normal) * (len(array) - 1) / 2
    origin, moved = positions[0], float(np.linalg.norm(to_side)) / min(spacing)
    if 2 * moved > ROUNDING_TOLERANCE_VOXELS:
        origin = origin + to_side
        notes.append(f"The slices of {name} drift to the side; voxels moved by up to {moved:.2g} voxels.")
    volume.SetSpacing((*spacing, float(step @ normal)))
    volume.SetOrigin(origin.tolist())
    volume.SetDirection(np.stack([*stack.axes, normal], axis=1).ravel().tolist())
    return volume


def _resample_evenly(array: np.ndarray, heights: np.ndarray, name: str) -> np.ndarray:
    """The slices of ``array`` at ``heights`` (mm), interpolated linearly to even spacing from the first to the last.

    The new spacing is close to the median spacing of ``heights``. Raises ImageError if the result would be too large;
    ``name`` is used in the message.
    """
    length, spacing = float(heights[-1] - heights[0]), float(np.median(np.diff(heights)))
    count = round(length / spacing) + 1
    require_allowed_size(
        (array.shape[2], array.shape[1], count),
        f"{name}, resampled to evenly spaced slices,",
        f"Check the positions of its slices: they extend over {length:g} mm, and most are {spacing:g} mm apart.",
    )
    even = np.empty((count, *array.shape[1:]), np.float32)
    for index, height in enumerate(np.linspace(heights[0], heights[-1], count)):
        above = min(max(int(np.searchsorted(heights, height)), 1), len(heights) - 1)
        share = np.float32((height - heights[above - 1]) / (heights[above] - heights[above - 1]))
        even[index] = (1 - share) * array[above - 1] + share * array[above]
    return even


_MAX_NAMED = 3
_EXTENSION = re.compile(r"(\.(dcm|dicom|ima|gz|zip|part|tmp|crdownload))+$", re.IGNORECASE)


def note_on_lost_slices(images: Sequence[DicomHeader], with_names: bool = True) -> list[str]:
    """A note on files that are named like the slices ``images`` and lie next to them, but are not DICOM files.

    They may be slices that were damaged or packed; without them, the volume may end too early. ``with_names`` lists
    them.
    """
    own = {image.file for image in images}
    folders: dict[Path, set[str]] = {}
    for image in images:
        folders.setdefault(Path(image.file).parent, set()).add(_get_name_pattern(Path(image.file).name))
    found = []
    for folder, patterns in folders.items():
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.path in own or entry.name.startswith(".") or _get_name_pattern(entry.name) not in patterns:
                    continue
                with suppress(OSError):
                    if entry.is_file() and not is_dicom(Path(entry.path)):
                        found.append(entry.name)
    if not found:
        return []
    shown = ", ".join(sorted(found)[:_MAX_NAMED]) + (", …" if len(found) > _MAX_NAMED else "")
    what = "1 file is" if len(found) == 1 else f"{len(found)} files are"
    names = f": {shown}" if with_names else ""
    return [f"{what} named like the slices but not DICOM, so slices may be missing at either end{names}."]


def _get_name_pattern(name: str) -> str:
    """What the names of the files of a series have in common: the name without extensions and digits."""
    return re.sub(r"\d+", "#", _EXTENSION.sub("", name))


def _make_no_dicom_error(folder: Path) -> ImageError:
    for candidate in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if _begins_with_dicom(candidate):
            return ImageError(
                f"{folder} itself contains no DICOM images, but its subfolder {candidate.name} does.",
                f"Choose that folder: {candidate}",
            )
    return ImageError(f"{folder} contains no DICOM images.", "Choose the folder with the DICOM files of one CT series.")


def _begins_with_dicom(folder: Path) -> bool:
    """Whether one of the first entries of ``folder`` is a DICOM image. Only a few are read, as it may be any folder."""
    try:
        return any(entry.is_file() and read_dicom_header(entry) for entry in islice(folder.iterdir(), 10))
    except (OSError, ValueError):
        return False
