"""Writing of labels as DICOM SEG, with one coded binary segment for each organ found, and verification of the file."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.config import RAISE, disable_value_validation
from pydicom.sr.codedict import codes
from pydicom.valuerep import DSfloat, validate_value

from ..errors import ImageError, OutputError
from ..organs import Organ, Vocabulary
from ..temp_paths import replacing

DICOM_SEG = "segmentation.dcm"
MANUFACTURER = "SlicerDCASegmentation"
# Positions in DICOM are decimal strings of at most 16 characters.
_SAME_MM = 0.01
_REQUIRED = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")
# Further attributes of patient and study that highdicom copies.
_OPTIONAL = ("PatientAge", "PatientSize", "PatientWeight", "StudyDescription", "IssuerOfPatientID")
# Attributes that must be present but may be empty (type 2), and that careless anonymization removes.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: the model's name and version, and parameters such as the checksum of its weights."""

    name: str
    version: str
    parameters: Mapping[str, str]

    @classmethod
    def from_model(cls, name: str, version: str, weights_sha256: str) -> Algorithm:
        """DCA with the trained model of this name and version, identified by the SHA-256 of its weights."""
        return cls(f"DCA {name}", version, {"weights_sha256": weights_sha256})


def write_segmentation(
    path: Path,
    slices: Sequence[Path],
    labels: sitk.Image,
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    pseudonym: str = "",
) -> None:
    """Write ``labels`` (uint8), which lie on the grid of the volume formed by the files ``slices``, to ``path``.

    ``slices`` are in order. Segments are numbered from 1 in the order of the vocabulary; organs that were not found
    have no segment. The headers of the CT need not conform to DICOM: invalid values are not copied, and the geometry is
    that of ``labels``. With a ``pseudonym``, nothing that describes the patient is copied, and the pseudonym replaces
    name and ID. The UIDs of study, series and slices remain, as the file would refer to nothing without them.

    Raises ImageError if the CT lacks what a DICOM SEG must refer to, if no organ was found, or if the labels do not lie
    on the slices; OSError if a slice cannot be read or the file cannot be written.
    """
    sources = [_read_header(file) for file in slices]
    _require_references(sources)
    array = sitk.GetArrayViewFromImage(labels)
    _require_same_grid(labels, sources)
    counts = np.bincount(array.ravel(), minlength=len(vocabulary) + 1)
    found = [organ for organ in vocabulary if counts[organ.label]]
    if not found:
        raise ImageError("A DICOM SEG was not written: it cannot be empty, and no organ was found.")
    segment_of = np.zeros(256, dtype=np.uint8)
    for number, organ in enumerate(found, start=1):
        segment_of[organ.label] = number
    # Slices without any organ need not be processed for each segment.
    used = np.flatnonzero(array.any(axis=(1, 2)))
    about = _make_patient_and_study(sources[0], pseudonym)
    if not _get_uid(sources[0], "FrameOfReferenceUID"):
        # Some anonymization removes it. The segmentation lies on the slices that it refers to all the same.
        sources[0].FrameOfReferenceUID = hd.UID()
    with disable_value_validation():
        segmentation = hd.seg.Segmentation(
            source_images=[_clean_copy(sources[index], about, sources[0], labels, int(index)) for index in used],
            pixel_array=segment_of[array[used]],
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _make_segment_description(organ, number, algorithm) for number, organ in enumerate(found, start=1)
            ],
            series_instance_uid=hd.UID(),
            series_number=_make_series_number(sources[0]),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm.name[:64],
            software_versions=algorithm.version[:64],
            device_serial_number="0",
            content_label="ORGANS",
            content_description="Organs found by DCA",
            series_description=f"Organs, {algorithm.name}"[:64],
        )
        stream = io.BytesIO()
        segmentation.save_as(stream)
    # Written here because pydicom hides why writing failed, and renamed so that no incomplete file has this name.
    with replacing(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def _read_header(file: Path) -> pydicom.Dataset:
    with file.open("rb") as stream, disable_value_validation():
        # A file without preamble or meta header is also DICOM.
        return pydicom.dcmread(stream, stop_before_pixels=True, force=True)


def _require_references(sources: Sequence[pydicom.Dataset]) -> None:
    if any(_number_of_frames(source) > 1 for source in sources):
        raise ImageError("A DICOM SEG was not written: the CT is a multi-frame image, which is not supported for it.")
    missing = [name for name in _REQUIRED if any(not _get_uid(source, name) for source in sources)]
    if missing:
        raise ImageError(f"A DICOM SEG was not written: the CT has no {', '.join(missing)} to refer to.")


def _number_of_frames(source: pydicom.Dataset) -> int:
    try:
        return int(source.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        return 1


def _get_uid(source: pydicom.Dataset, name: str) -> str:
    return str(source.get(name) or "").strip(" \0")


def _require_same_grid(labels: sitk.Image, sources: Sequence[pydicom.Dataset]) -> None:
    size = (int(sources[0].get("Columns") or 0), int(sources[0].get("Rows") or 0), len(sources))
    ends = [labels.TransformIndexToPhysicalPoint((0, 0, index)) for index in (0, labels.GetDepth() - 1)]
    stated = [_get_position(sources[0]), _get_position(sources[-1])]
    if labels.GetSize() != size or None in stated or not np.allclose(ends, np.array(stated), atol=_SAME_MM):
        raise ImageError("A DICOM SEG was not written: the labels do not lie on the slices of the CT.")


def _get_position(source: pydicom.Dataset) -> tuple[float, ...] | None:
    try:
        values = tuple(float(value) for value in source.ImagePositionPatient)
    except (AttributeError, TypeError, ValueError):
        return None
    return values if len(values) == 3 and np.isfinite(values).all() else None


def _make_patient_and_study(source: pydicom.Dataset, pseudonym: str) -> pydicom.Dataset:
    """The description of patient and study, in UTF-8: the values of ``source`` that conform to DICOM."""
    about = pydicom.Dataset()
    about.SpecificCharacterSet = "ISO_IR 192"
    for name in _MAY_BE_EMPTY:
        setattr(about, name, "")
    if pseudonym:
        about.PatientID = about.PatientName = pseudonym
        about.PatientIdentityRemoved = "YES"
        about.DeidentificationMethod = "SlicerDCASegmentation: keyed pseudonym, dates and descriptions left out"
        return about
    for name in (*_MAY_BE_EMPTY, *_OPTIONAL):
        value = _get_valid_value(source, name)
        if value is not None:
            setattr(about, name, value)
    return about


def _get_valid_value(source: pydicom.Dataset, name: str) -> object:
    """The value of an attribute; None if it is missing or does not conform to DICOM."""
    try:
        element = source[name]
        value = element.value
        if value is None or value == "":
            return None
        texts = [str(item).strip(" \0") for item in (value if element.VM > 1 else [value])]
        if name == "PatientSex" and texts[0].upper() not in ("M", "F", "O"):
            return None
        for text in texts:
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
                return None
            # The length of UTF-8 text is counted in characters.
            validate_value(element.VR, text, RAISE)
        if element.VR == "DA":
            datetime.strptime(texts[0], "%Y%m%d")
    # Whatever error a damaged element causes: it is optional.
    except Exception:
        return None
    if name == "PatientSex":
        return texts[0].upper()
    return texts if len(texts) > 1 else texts[0]


def _clean_copy(
    source: pydicom.Dataset, about: pydicom.Dataset, first: pydicom.Dataset, labels: sitk.Image, index: int
) -> pydicom.Dataset:
    """The header of slice ``index`` for the segmentation: its own UIDs, the geometry of ``labels``, and ``about``.

    The slices form one volume, so study, series and frame of reference are those of ``first``, even if they differ.
    """
    copy = pydicom.Dataset()
    copy.update(about)
    copy.SOPClassUID, copy.SOPInstanceUID = _get_uid(source, "SOPClassUID"), _get_uid(source, "SOPInstanceUID")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(copy, name, _get_uid(first, name))
    copy.Modality = "CT"
    copy.Columns, copy.Rows = labels.GetWidth(), labels.GetHeight()
    step_x, step_y, step_z = labels.GetSpacing()
    axes = np.reshape(labels.GetDirection(), (3, 3))
    corner = np.array(labels.TransformIndexToPhysicalPoint((0, 0, index)))
    stated = _get_position(source)
    # The slice's own digits if they agree.
    is_same = stated is not None and np.allclose(stated, corner, atol=_SAME_MM)
    copy.ImagePositionPatient = source.ImagePositionPatient if is_same else _make_decimal_strings(corner)
    copy.ImageOrientationPatient = _make_decimal_strings((*axes[:, 0], *axes[:, 1]))
    copy.PixelSpacing = _make_decimal_strings((step_y, step_x))
    copy.SpacingBetweenSlices = _make_decimal_strings((step_z,))[0]
    copy.SliceThickness = _get_slice_thickness(source) or copy.SpacingBetweenSlices
    for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        value = _get_valid_value(source, name)
        if value is not None:
            setattr(copy, name, value)
    return copy


def _get_slice_thickness(source: pydicom.Dataset) -> DSfloat | None:
    """The slice thickness in mm; None if it is missing, empty or impossible."""
    try:
        value = float(source.SliceThickness)
    except (AttributeError, TypeError, ValueError):
        return None
    return _make_decimal_strings((value,))[0] if 0 < value < 1000 else None


def _make_decimal_strings(values: Iterable[float]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _make_series_number(source: pydicom.Dataset) -> int:
    """A series number derived from that of the CT, as scanners number derived series."""
    try:
        return max(1, min(int(source.get("SeriesNumber") or 0) * 100 + 1, 2**31 - 1))
    except (TypeError, ValueError, OverflowError):
        return 1


def _make_segment_description(organ: Organ, number: int, algorithm: Algorithm) -> hd.seg.SegmentDescription:
    def concept(value: str, scheme: str, meaning: str) -> hd.sr.CodedConcept:
        return hd.sr.CodedConcept(value, scheme, meaning)

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ.name,
        segmented_property_category=concept(organ.category.value, organ.category.scheme, organ.category.meaning),
        segmented_property_type=concept(organ.code.value, organ.code.scheme, organ.code.meaning),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=algorithm.version[:64],
            source=MANUFACTURER,
            parameters=dict(algorithm.parameters),
        ),
        tracking_uid=hd.UID(),
        tracking_id=organ.key,
        display_color=hd.color.CIELabColor.from_rgb(*organ.color),
    )
    if organ.side is not None:
        # As Slicer and dcmqi write it; highdicom has no argument for this.
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            concept(organ.side.value, organ.side.scheme, organ.side.meaning)
        ]
    return description


def write_checked(
    path: Path,
    slices: Sequence[Path],
    labels: sitk.Image,
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    pseudonym: str = "",
) -> None:
    """Write a DICOM SEG as ``write_segmentation`` does, then read it back and compare it with ``labels``.

    Raises OutputError if they differ, and removes the file.
    """
    write_segmentation(path, slices, labels, vocabulary, algorithm, pseudonym)
    try:
        require_same_voxels(path, labels, vocabulary)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def require_same_voxels(path: Path, labels: sitk.Image, vocabulary: Vocabulary) -> None:
    """Raise OutputError unless the DICOM SEG at ``path`` contains exactly ``labels`` (uint8), voxel by voxel."""
    segmentation = hd.seg.segread(path)
    keys = {
        number: segmentation.get_segment_description(number).tracking_id
        for number in _get_segment_numbers(segmentation)
    }
    label_of = np.zeros(256, dtype=np.uint8)
    for number, key in keys.items():
        label_of[number] = vocabulary.by_key[str(key)].label
    volume = segmentation.get_volume(combine_segments=True, dtype=np.uint8)
    expected = sitk.GetArrayViewFromImage(labels)
    is_covered = np.zeros(len(expected), dtype=bool)
    columns, rows = labels.GetSize()[:2]
    for index, plane in enumerate(volume.array):
        corners = [volume.affine @ (index, *corner, 1.0) for corner in ((0, 0), (0, columns - 1), (rows - 1, 0))]
        found = np.array([labels.TransformPhysicalPointToContinuousIndex(corner[:3].tolist()) for corner in corners])
        z = round(float(found[0, 2]))
        target = np.array([(0, 0, z), (columns - 1, 0, z), (0, rows - 1, z)])
        off_mm = float(np.abs((found - target) * labels.GetSpacing()).max())
        if off_mm > _SAME_MM or not 0 <= z < len(expected) or not np.array_equal(label_of[plane], expected[z]):
            raise _make_mismatch_error(path)
        is_covered[z] = True
    if expected[~is_covered].any():
        raise _make_mismatch_error(path)


def _get_segment_numbers(segmentation: hd.seg.Segmentation) -> range:
    return range(1, segmentation.number_of_segments + 1)


def _make_mismatch_error(path: Path) -> OutputError:
    return OutputError(
        f"{path.name} differs from the labels when it is read back.", "Report this, with the header of the CT."
    )
