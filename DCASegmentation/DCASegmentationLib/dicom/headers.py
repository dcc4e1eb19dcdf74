"""What the header of one DICOM file says, as far as sorting needs it; the voxels stay on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation
from pydicom.uid import UID

_PREAMBLE = 128
_MAGIC = b"DICM"
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "RescaleType", "LossyImageCompression"),
    *("PatientID", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "SeriesDescription", "AcquisitionNumber"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
]


@dataclass(frozen=True, slots=True)
class Header:
    """One image of a DICOM archive. Texts are empty and numbers NaN or 0 where the file does not say.

    ``position`` (mm, LPS) is the center of the first voxel, ``axes`` the directions of increasing column and row
    (six cosines), ``spacing`` the distance of columns and of rows in mm (x, y). ``transfer_syntax`` is a name.
    """

    file: str
    sop_class: str
    instance: str
    modality: str
    image_type: tuple[str, ...]
    rescale_type: str
    lossy: bool
    patient: str
    study: str
    study_date: str
    series: str
    description: str
    acquisition: str
    frame_of_reference: str
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    rows: int
    columns: int
    values_per_voxel: int
    frames: int
    transfer_syntax: str


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM files do. Raises OSError where it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def read_header(path: Path) -> Header | None:
    """The header of a DICOM image; None for a DICOM file without an image, such as a DICOMDIR or a report.

    Raises OSError where the file cannot be read and ValueError, with the reason, where it is damaged.
    """
    with path.open("rb") as stream, disable_value_validation():
        try:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            if "Rows" in dataset:
                return _header(path, dataset)
            if _claims_an_image(dataset):
                raise ValueError("its header ends too early")
            return None
        except (OSError, ValueError):
            raise
        # pydicom raises whatever the damaged bytes lead to.
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def _claims_an_image(dataset: pydicom.Dataset) -> bool:
    """Whether what is left of a header belongs to an image, or does not even say what it belongs to."""
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""
    return kind == "" or "Image Storage" in UID(kind).name


def _header(path: Path, dataset: pydicom.Dataset) -> Header:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    return Header(
        file=str(path),
        sop_class=_text(dataset, "SOPClassUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        modality=_text(dataset, "Modality"),
        image_type=tuple(str(value).upper() for value in _values(dataset, "ImageType")),
        rescale_type=_text(dataset, "RescaleType").upper(),
        lossy=_text(dataset, "LossyImageCompression") == "01",
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        study_date=_text(dataset, "StudyDate"),
        series=_text(dataset, "SeriesInstanceUID"),
        description=_text(dataset, "SeriesDescription"),
        acquisition=_text(dataset, "AcquisitionNumber"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        axes=_numbers(dataset, "ImageOrientationPatient", 6),
        # DICOM tells the distance of rows first.
        spacing=_numbers(dataset, "PixelSpacing", 2)[::-1],
        rows=_count(dataset, "Rows", 0),
        columns=_count(dataset, "Columns", 0),
        values_per_voxel=_count(dataset, "SamplesPerPixel", 1),
        frames=_count(dataset, "NumberOfFrames", 1),
        transfer_syntax="" if syntax is None else syntax.name,
    )


def _values(dataset: pydicom.Dataset, name: str) -> list[Any]:
    value = dataset.get(name)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _text(dataset: pydicom.Dataset, name: str) -> str:
    return "\\".join(str(value).strip(" \0") for value in _values(dataset, name))


def _numbers(dataset: pydicom.Dataset, name: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in _values(dataset, name))
    except (TypeError, ValueError):
        values = ()
    return values if len(values) == count else (math.nan,) * count


def _count(dataset: pydicom.Dataset, name: str, default: int) -> int:
    try:
        return int(dataset.get(name, default))
    except (TypeError, ValueError):
        return default
