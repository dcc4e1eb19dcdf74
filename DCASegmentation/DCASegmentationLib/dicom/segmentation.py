"""Labels as DICOM SEG: one binary segment for each organ found, coded, with references to the CT's own instances."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes

from ..errors import ImageError
from ..organs import Organ, Vocabulary

DICOM_SEG = "segmentation.dcm"
MANUFACTURER = "SlicerDCASegmentation"
# Positions in DICOM are decimal strings of at most 16 characters.
_SAME_MM = 0.01
_REQUIRED = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# Attributes that must be there though they may be empty (type 2), which careless anonymization removes.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: the model's name and version, and what identifies them, such as the weights' checksum."""

    name: str
    version: str
    parameters: Mapping[str, str]

    @classmethod
    def of_model(cls, name: str, version: str, weights_sha256: str) -> Algorithm:
        """DCA with the trained model of that name and version, known by the SHA-256 of its weights."""
        return cls(f"DCA {name}", version, {"weights_sha256": weights_sha256})


def write_segmentation(
    path: Path, slices: Sequence[Path], labels: sitk.Image, vocabulary: Vocabulary, algorithm: Algorithm
) -> None:
    """Writes ``labels`` (uint8, on the grid of the volume that the files ``slices`` make in this order) to ``path``.

    Segments are numbered from 1 in the order of the vocabulary; organs that were not found have none. Raises
    ImageError where the CT lacks what a DICOM SEG must refer to, where no organ was found, or where the labels do not
    lie on the slices; OSError where the file cannot be written.
    """
    sources = [_source(file) for file in slices]
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
    # Slices without any organ need not be looked at again for each segment.
    used = np.flatnonzero(array.any(axis=(1, 2)))
    segmentation = hd.seg.Segmentation(
        source_images=[sources[index] for index in used],
        pixel_array=segment_of[array[used]],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(organ, number, algorithm) for number, organ in enumerate(found, start=1)],
        series_instance_uid=hd.UID(),
        series_number=_series_number(sources[0]),
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
    with disable_value_validation():
        segmentation.save_as(stream)
    # Written here: pydicom hides why the disk refuses.
    path.write_bytes(stream.getbuffer())


def _source(file: Path) -> pydicom.Dataset:
    with file.open("rb") as stream, disable_value_validation():
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    for name in _MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    return dataset


def _require_references(sources: Sequence[pydicom.Dataset]) -> None:
    missing = [name for name in _REQUIRED if any(not source.get(name) for source in sources)]
    if missing:
        raise ImageError(f"A DICOM SEG was not written: the CT has no {', '.join(missing)} to refer to.")


def _require_same_grid(labels: sitk.Image, sources: Sequence[pydicom.Dataset]) -> None:
    size = (int(sources[0].Columns), int(sources[0].Rows), len(sources))
    ends = [labels.TransformIndexToPhysicalPoint((0, 0, index)) for index in (0, labels.GetDepth() - 1)]
    told = [sources[0].ImagePositionPatient, sources[-1].ImagePositionPatient]
    if labels.GetSize() != size or not np.allclose(ends, np.array(told, dtype=float), atol=_SAME_MM):
        raise ImageError("A DICOM SEG was not written: the labels do not lie on the slices of the CT.")


def _series_number(source: pydicom.Dataset) -> int:
    """A number beside that of the CT, as scanners number what they derive from it."""
    try:
        return min(int(source.get("SeriesNumber") or 0) * 100 + 1, 2**31 - 1)
    except ValueError:
        return 1


def _description(organ: Organ, number: int, algorithm: Algorithm) -> hd.seg.SegmentDescription:
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
        # As Slicer and dcmqi write it; highdicom has no argument for it.
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            concept(organ.side.value, organ.side.scheme, organ.side.meaning)
        ]
    return description
