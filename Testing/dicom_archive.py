"""DICOM archives as scanners and careless exports leave them, written from synthetic CT."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    generate_uid,
)

# Lossless syntaxes that pydicom does not write by itself, with GDCM's names of their encoders.
_BY_GDCM = {JPEGLosslessSV1: "JPEG", JPEG2000Lossless: "JPEG2000"}

Change = Callable[[pydicom.Dataset, int], None]


def write_ct_series(
    folder: Path,
    ct: sitk.Image,
    *,
    uid: str | None = None,
    study: str | None = None,
    patient: str = "P1",
    change: Change | None = None,
    syntax: str | None = None,
    stem: str = "IM",
    **attributes: object,
) -> str:
    """Writes ``ct`` as one series, a file for each slice; returns its SeriesInstanceUID.

    ``attributes`` are set in every file, ``change(dataset, index)`` may alter each before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid, study, frame = uid or generate_uid(), study or generate_uid(), generate_uid()
    array = sitk.GetArrayViewFromImage(ct)
    direction = np.reshape(ct.GetDirection(), (3, 3))
    for index, plane in enumerate(array):
        dataset = _slice(plane, ct.TransformIndexToPhysicalPoint((0, 0, index)), direction, ct.GetSpacing())
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid, study, frame
        dataset.PatientID, dataset.PatientName = patient, "Phantom^Synthetic"
        dataset.InstanceNumber = index + 1
        for name, value in attributes.items():
            setattr(dataset, name, value)
        if change is not None:
            change(dataset, index)
        if syntax in _BY_GDCM:
            _compress_with_gdcm(dataset, syntax)
        elif syntax is not None:
            dataset.compress(syntax, generate_instance_uid=False)
        # Names in no useful order, as archives have them.
        dataset.save_as(folder / f"{stem}{(7 * index) % 1009:05d}", enforce_file_format=True)
    return uid


def moved(axis: int, mm_of: Callable[[int], float]) -> Change:
    """A change that moves slice ``index`` by ``mm_of(index)`` along an axis of the patient."""

    def change(dataset: pydicom.Dataset, index: int) -> None:
        position = [float(value) for value in dataset.ImagePositionPatient]
        position[axis] += mm_of(index)
        dataset.ImagePositionPatient = position

    return change


def write_enhanced_ct(folder: Path, series: Path) -> None:
    """Writes the ``series`` (a folder of files) as one enhanced CT image: all slices are frames of one file."""
    slices = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    enhanced = LegacyConvertedEnhancedCTImage(slices, generate_uid(), 7, generate_uid(), 1)
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    folder.mkdir(parents=True)
    enhanced.save_as(folder / "IM00001")


def claim_unknown_compression(file: Path) -> None:
    """Makes ``file`` say that it is HTJ2K, which GDCM does not decode."""
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)


def _compress_with_gdcm(dataset: pydicom.Dataset, syntax: str) -> None:
    """Put GDCM's encoding of the voxels into ``dataset``."""
    plane = np.frombuffer(dataset.PixelData, "<i2").reshape(1, dataset.Rows, dataset.Columns)
    with tempfile.TemporaryDirectory() as folder:
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(f"{folder}/slice.dcm")
        writer.UseCompressionOn()
        writer.SetCompressor(_BY_GDCM[syntax])
        writer.Execute(sitk.GetImageFromArray(plane))
        encoded = pydicom.dcmread(f"{folder}/slice.dcm")
    assert encoded.file_meta.TransferSyntaxUID == syntax
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encoded.PixelData
    dataset["PixelData"].is_undefined_length = True


def _slice(
    plane: np.ndarray, position: Sequence[float], direction: np.ndarray, spacing: Sequence[float]
) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality, dataset.Manufacturer = "CT", "Phantom"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260102", "101112", "1", ""
    dataset.PatientBirthDate, dataset.PatientSex, dataset.ReferringPhysicianName = "", "", ""
    dataset.SeriesNumber, dataset.SeriesDescription, dataset.AcquisitionNumber = 2, "Abdomen", 1
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in position]
    dataset.ImageOrientationPatient = [f"{value:.8f}" for value in (*direction[:, 0], *direction[:, 1])]
    dataset.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
    dataset.SliceThickness = f"{spacing[2]:.6f}"
    dataset.PositionReferenceIndicator, dataset.KVP = "", "120"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    dataset.PixelData = np.ascontiguousarray(plane, dtype="<i2").tobytes()
    return dataset
