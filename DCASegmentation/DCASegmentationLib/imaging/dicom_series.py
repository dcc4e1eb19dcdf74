"""One CT series out of a folder of DICOM files."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, require_memory
from .dicom_slices import Slice, read_slice, sorted_slices
from .file_errors import require_text_name
from .itk_warnings import no_itk_warnings

_CT_IMAGE_STORAGE = b"1.2.840.10008.5.1.4.1.1.2\0"


def read_dicom_folder(folder: Path, series: str | None = None) -> sitk.Image:
    """Reads the one CT series of ``folder`` (HU, 3D), its slices ordered by position.

    ``series`` chooses among several: the number shown in the error's list, or the SeriesInstanceUID. Files that are no
    DICOM images (a DICOMDIR, a report, a text) are passed over.

    Returns int16 where every voxel fits, else float32. Memory: twice the volume.

    Raises ImageError where the folder holds no DICOM image, several series and no choice, another modality than CT,
    a multi-frame or damaged file, and where slices are missing, doubled, unevenly spaced, of different size or tilted.
    """
    with no_itk_warnings():
        found = _series_in(folder)
        if not found:
            raise _no_dicom(folder)
        slices = sorted_slices(_chosen(found, series, folder.name), folder.name)
        try:
            return _stack(slices)
        except RuntimeError as error:
            require_memory(error)
            raise ImageError(
                f"The DICOM files of {folder.name} cannot be decoded (damaged, or an unusual compression).",
                "Export them again, or open them in 3D Slicer and save the volume as .nrrd.",
            ) from None


def _series_in(folder: Path) -> dict[str, list[Slice]]:
    """The DICOM images of ``folder`` by SeriesInstanceUID, in the order of the UIDs.

    Header by header: GDCM's own listing keeps every file of the folder in memory, voxels and all.
    """
    series: dict[str, list[Slice]] = {}
    try:
        for file in sorted(entry for entry in folder.iterdir() if entry.is_file()):
            require_text_name(file)
            one = _image_in(file)
            if one is not None:
                series.setdefault(one.series_uid, []).append(one)
    except OSError as error:
        where = error.filename or folder
        raise ImageError(f"{where} cannot be read: {error.strerror or error}.", "Check its permissions.") from None
    return dict(sorted(series.items()))


def _image_in(file: Path) -> Slice | None:
    """The header of a DICOM image; None for a file of another kind."""
    try:
        return read_slice(file)
    except RuntimeError:
        if _claims_to_be_ct(file):
            # Left out, it would shorten the volume unnoticed.
            raise ImageError(
                f"{file.name} in {file.parent.name} is an incomplete or damaged DICOM file.",
                "Copy or export the series again.",
            ) from None
        return None


def _claims_to_be_ct(file: Path) -> bool:
    """Whether the file's meta information names it a CT image."""
    with file.open("rb") as stream:
        start = stream.read(1024)
    return start[128:132] == b"DICM" and _CT_IMAGE_STORAGE in start


def _chosen(found: dict[str, list[Slice]], series: str | None, name: str) -> list[Slice]:
    uids = list(found)
    if series is None and len(uids) == 1:
        return found[uids[0]]
    if series is not None and series in found:
        return found[series]
    if series is not None and series.isdecimal() and 1 <= int(series) <= len(uids):
        return found[uids[int(series) - 1]]
    listed = "; ".join(f"[{number}] {_described(found[uid])}" for number, uid in enumerate(uids, start=1))
    holds = f"{name} holds {len(uids)} series: {listed}."
    if series is None:
        raise ImageError(holds, "Choose one with --series and its number or UID.")
    raise ImageError(f"There is no series {series}: {holds}", "Choose one of these by its number or UID.")


def _described(slices: list[Slice]) -> str:
    first = slices[0]
    count = f"{len(slices)} slice{'s' if len(slices) != 1 else ''}"
    modality, description = first.modality or "unknown modality", first.description or "no description"
    return f"{modality}, {description}, {count}, UID {first.series_uid}"


def _stack(slices: list[Slice]) -> sitk.Image:
    """The volume of ordered, evenly spaced slices.

    Slice by slice, because ITK's series reader would take 32 bits for every voxel of a CT with a rescale intercept.
    """
    columns, rows = slices[0].size[:2]
    array = np.empty((len(slices), rows, columns), np.int16)
    for index, one in enumerate(slices):
        # The view does not keep its image alive, so the image needs a name.
        image = sitk.ReadImage(str(one.file), imageIO="GDCMImageIO")
        plane = sitk.GetArrayViewFromImage(image)
        if array.dtype == np.int16 and not _int16_holds(plane):
            array = array.astype(np.float32)
        array[index] = plane.reshape(rows, columns)
    volume = sitk.GetImageFromArray(array)
    first, last = slices[0], slices[-1]
    gap = float(np.linalg.norm(last.position - first.position)) / (len(slices) - 1)
    normal = np.cross(first.axes[0], first.axes[1])
    volume.SetSpacing((*first.spacing, gap))
    volume.SetOrigin(first.position.tolist())
    volume.SetDirection(np.stack([*first.axes, normal], axis=1).ravel().tolist())
    return volume


def _int16_holds(plane: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    if plane.min() < limits.min or plane.max() > limits.max:
        return False
    return plane.dtype.kind in "iu" or bool(np.array_equal(plane, np.rint(plane)))


def _no_dicom(folder: Path) -> ImageError:
    for candidate in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if _begins_with_dicom(candidate):
            return ImageError(
                f"{folder} itself holds no DICOM images, its subfolder {candidate.name} does.",
                f"Give that folder: {candidate}",
            )
    return ImageError(f"{folder} holds no DICOM images.", "Give the folder with the DICOM files of one CT series.")


def _begins_with_dicom(folder: Path) -> bool:
    """Whether one of the first entries of ``folder`` is a DICOM image; a few, as it may be anything's folder."""
    try:
        for entry in islice(folder.iterdir(), 10):
            with suppress(RuntimeError):
                if entry.is_file() and read_slice(entry):
                    return True
    except OSError:
        pass
    return False
