"""One CT series out of a folder of DICOM files."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from ..errors import ImageError
from .dicom_slices import Slice, int16_holds, read_slice, sorted_slices
from .itk_warnings import no_itk_warnings


def read_dicom_folder(folder: Path, series: str | None = None) -> sitk.Image:
    """Reads the one CT series of ``folder`` (HU, 3D), its slices ordered by position.

    ``series`` chooses among several: the number shown in the error's list, or the SeriesInstanceUID.

    Raises ImageError where the folder holds no DICOM image, several series and no choice, another modality than CT,
    a multi-frame file, and where slices are missing, doubled, unevenly spaced, of different size or tilted.
    """
    with no_itk_warnings():
        uid = _choose(folder, series)
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        try:
            slices = sorted_slices([read_slice(Path(file)) for file in files], folder.name)
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(one.file) for one in slices])
            if int16_holds(slices):
                # ITK would take 32 bits a voxel because of the rescale intercept.
                reader.SetOutputPixelType(sitk.sitkInt16)
            return reader.Execute()
        except RuntimeError:
            raise ImageError(
                f"The DICOM files of {folder.name} cannot be decoded (damaged, or an unusual compression).",
                "Export them again, or open them in 3D Slicer and save the volume as .nrrd.",
            ) from None


def _choose(folder: Path, series: str | None) -> str:
    uids = sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if not uids:
        raise _no_dicom(folder)
    if series is None and len(uids) == 1:
        return uids[0]
    if series is not None and series in uids:
        return series
    if series is not None and series.isdecimal() and 1 <= int(series) <= len(uids):
        return uids[int(series) - 1]
    listed = "; ".join(f"[{number}] {_describe(folder, uid)}" for number, uid in enumerate(uids, start=1))
    count = f"{len(uids)} series" if len(uids) > 1 else "1 series"
    if series is None:
        raise ImageError(
            f"{folder.name} holds {count}: {listed}.", "Choose one with --series and its number or its UID."
        )
    raise ImageError(
        f"{folder.name} holds no series {series}, but {count}: {listed}.",
        "Choose one of these by its number or its UID.",
    )


def _describe(folder: Path, uid: str) -> str:
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
    try:
        first: Slice | None = read_slice(Path(files[0]))
    except RuntimeError:
        first = None
    modality = (first.modality if first else "") or "unknown modality"
    description = (first.description if first else "") or "no description"
    return f"{modality}, {description}, {len(files)} slice{'s' if len(files) != 1 else ''}, UID {uid}"


def _no_dicom(folder: Path) -> ImageError:
    for candidate in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(candidate)):
            return ImageError(
                f"{folder} itself holds no DICOM images, its subfolder {candidate.name} does.",
                f"Give that folder: {candidate}",
            )
    return ImageError(f"{folder} holds no DICOM images.", "Give the folder with the DICOM files of one CT series.")
