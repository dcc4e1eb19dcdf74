"""Labels as DICOM SEG, as other programs read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

hd = pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from dcaseg.dicom.archive import (
    order_slices,
    read_header,
)
from dcaseg.dicom.segmentation import Algorithm, require_same_voxels, write_checked, write_segmentation
from dcaseg.errors import ImageError, OutputError
from dcaseg.organs import AMOS
from dicom_archive import write_ct_series

ALGORITHM = Algorithm("DCA test", "0.1.0", {"weights_sha256": "ab" * 32})


def series_of(folder: Path, ct: sitk.Image, **attributes) -> list[Path]:
    write_ct_series(folder, ct, **attributes)
    headers = [header for header in map(read_header, folder.iterdir()) if header]
    return [Path(image.file) for image in order_slices(headers, "test").images]


@pytest.fixture(scope="module")
def case(coarse_phantom, tmp_path_factory) -> tuple[list[Path], sitk.Image, Path]:
    """The slices of a synthetic CT, its labels without the stomach (an organ not found), and their DICOM SEG."""
    folder = tmp_path_factory.mktemp("seg")
    labels = sitk.ReadImage(str(coarse_phantom / "labels.nii.gz"))
    labels = sitk.Mask(labels, labels != AMOS.by_key["stomach"].label)
    slices = series_of(folder / "ct", sitk.ReadImage(str(coarse_phantom / "ct.nii.gz")))
    write_segmentation(folder / "seg.dcm", slices, labels, AMOS, ALGORITHM)
    return slices, labels, folder / "seg.dcm"


def test_every_voxel_is_restored_at_its_position(case):
    _, labels, path = case
    segmentation = hd.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=True)
    label_of = {0: 0} | {
        number: AMOS.by_key[segmentation.get_segment_description(number).tracking_id].label
        for number in range(1, segmentation.number_of_segments + 1)
    }
    read = np.zeros(labels.GetSize()[::-1], dtype=np.uint8)
    for index in np.argwhere(volume.array):
        point = (volume.affine @ (*index, 1.0))[:3]
        read[labels.TransformPhysicalPointToIndex(point.tolist())[::-1]] = label_of[int(volume.array[tuple(index)])]
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(labels))
    require_same_voxels(path, labels, AMOS)


def test_the_check_detects_a_single_voxel_and_a_shift(case):
    _, labels, path = case
    changed = sitk.Image(labels)
    x, y, z = np.argwhere(sitk.GetArrayViewFromImage(labels) == 6)[0].tolist()[::-1]
    changed[x, y, z] = 0
    shifted = sitk.Image(labels)
    shifted.SetOrigin([value + shift for value, shift in zip(labels.GetOrigin(), (6.0, 0.0, 0.0), strict=True)])
    for other in (changed, shifted):
        with pytest.raises(OutputError, match="differs"):
            require_same_voxels(path, other, AMOS)


def test_segments_have_codes_sides_colors_and_the_algorithm(case):
    _, labels, path = case
    segmentation = pydicom.dcmread(path)
    present = set(np.unique(sitk.GetArrayFromImage(labels)))
    organs = [organ for organ in AMOS if organ.label in present]
    assert "stomach" not in {organ.key for organ in organs}
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == [organ.name for organ in organs]
    for segment, organ in zip(segmentation.SegmentSequence, organs, strict=True):
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == (organ.code.value, "SCT")
        sides = [code.CodeValue for code in kind.get("SegmentedPropertyTypeModifierCodeSequence", [])]
        assert sides == ([organ.side.value] if organ.side else [])
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("DCA test", "0.1.0")
        assert "ab" * 32 in algorithm.AlgorithmParameters
        assert segment.SegmentAlgorithmType == "AUTOMATIC"


def test_every_frame_refers_to_the_slice_it_lies_on(case):
    slices, _, path = case
    positions = {source.SOPInstanceUID: source.ImagePositionPatient for source in map(pydicom.dcmread, slices)}
    segmentation = pydicom.dcmread(path)
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert frame.PlanePositionSequence[0].ImagePositionPatient == positions[uid]
    first = pydicom.dcmread(slices[0])
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert segmentation[name].value == first[name].value
    assert segmentation.SeriesInstanceUID != first.SeriesInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(case):
    run = subprocess.run(["dciodvfy", str(case[2])], capture_output=True, text=True)
    assert [line for line in run.stderr.splitlines() if line.startswith("Error")] == []


def test_oblique_slices_keep_their_geometry(coarse_phantom, tmp_path):
    ct, labels = (sitk.ReadImage(str(coarse_phantom / name)) for name in ("ct.nii.gz", "labels.nii.gz"))
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.2, -0.1, 0.3).GetMatrix()
    for image in (ct, labels):
        image.SetDirection(turn)
    write_segmentation(tmp_path / "seg.dcm", series_of(tmp_path / "ct", ct), labels, AMOS, ALGORITHM)
    require_same_voxels(tmp_path / "seg.dcm", labels, AMOS)


def test_patient_names_in_any_script_are_copied(coarse_phantom, tmp_path):
    ct, labels = (sitk.ReadImage(str(coarse_phantom / name)) for name in ("ct.nii.gz", "labels.nii.gz"))
    slices = series_of(tmp_path / "ct", ct, PatientName="Müller^Jörg", PatientID="Ö-1")
    write_segmentation(tmp_path / "seg.dcm", slices, labels, AMOS, ALGORITHM)
    assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == "Müller^Jörg"


def test_a_ct_without_uids_gives_no_segmentation(coarse_phantom, tmp_path):
    ct, labels = (sitk.ReadImage(str(coarse_phantom / name)) for name in ("ct.nii.gz", "labels.nii.gz"))
    slices = series_of(tmp_path / "ct", ct, SOPInstanceUID="", SeriesInstanceUID="")
    with pytest.raises(ImageError, match="no SOPInstanceUID, SeriesInstanceUID to refer to"):
        write_segmentation(tmp_path / "seg.dcm", slices, labels, AMOS, ALGORITHM)


def test_a_multi_frame_ct_gives_no_segmentation_and_the_true_reason(coarse_phantom, tmp_path):
    from dicom_archive import write_enhanced_ct

    ct, labels = (sitk.ReadImage(str(coarse_phantom / name)) for name in ("ct.nii.gz", "labels.nii.gz"))
    write_ct_series(tmp_path / "slices", ct)
    write_enhanced_ct(tmp_path / "ct", tmp_path / "slices")
    with pytest.raises(ImageError, match="multi-frame image, which is not supported"):
        write_segmentation(tmp_path / "seg.dcm", [tmp_path / "ct/IM00001"], labels, AMOS, ALGORITHM)


def test_labels_without_organs_give_no_segmentation(case, tmp_path):
    slices, labels, _ = case
    with pytest.raises(ImageError, match="no organ was found"):
        write_segmentation(tmp_path / "seg.dcm", slices, labels * 0, AMOS, ALGORITHM)


def removed(*names):
    def change(dataset, index):
        for name in names:
            dataset.pop(name, None)

    return change


def raw(name, vr, value):
    """Set an attribute to bytes that do not conform to DICOM."""

    def change(dataset, index):
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import Tag

        tag = Tag(name)
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return change


def other_frames(dataset, index):
    dataset.FrameOfReferenceUID = f"1.2.3.{index + 1}"


ODD_HEADERS = {
    "slice thickness missing": removed("SliceThickness"),
    "slice thickness empty": raw("SliceThickness", "DS", b""),
    "slice thickness no number": raw("SliceThickness", "DS", b"5 mm"),
    "slice thickness zero": raw("SliceThickness", "DS", b"0 "),
    "negative spacing between slices": raw("SpacingBetweenSlices", "DS", b"-8"),
    "spacing between slices of another scan": raw("SpacingBetweenSlices", "DS", b"3 "),
    "study time with colons": raw("StudyTime", "TM", b"12:30:15"),
    "study time that there is not": raw("StudyTime", "TM", b"993061"),
    "study date with dashes": raw("StudyDate", "DA", b"2020-01-01"),
    "study date that there is not": raw("StudyDate", "DA", b"20201399"),
    "birth date in words": raw("PatientBirthDate", "DA", b"unknown "),
    "sex in words": raw("PatientSex", "CS", b"female"),
    "sex in a small letter": raw("PatientSex", "CS", b"f "),
    "two sexes": raw("PatientSex", "CS", b"M\\F "),
    "age in years": raw("PatientAge", "AS", b"57 years"),
    "weight in words": raw("PatientWeight", "DS", b"70 kg "),
    "unknown character set": raw("SpecificCharacterSet", "CS", b"ISO_IR 999"),
    "character set in words": raw("SpecificCharacterSet", "CS", b"utf8"),
    "name in another character set than stated": raw("PatientName", "PN", b"M\xfcller^J\xf6rg"),
    "name far too long": raw("PatientName", "PN", b"A" * 300),
    "escape sequences in the name": raw("PatientName", "PN", b"\x1b[2J^\x1b[31m"),
    "ID far too long": raw("PatientID", "LO", b"9" * 100),
    "accession number of many values": raw("AccessionNumber", "SH", b"1\\2\\3 "),
    "series number no number": raw("SeriesNumber", "IS", b"two "),
    "negative series number": raw("SeriesNumber", "IS", b"-5"),
    "frames of reference that differ": other_frames,
    "frame of reference missing": removed("FrameOfReferenceUID"),
    "frame of reference empty": raw("FrameOfReferenceUID", "UI", b""),
    "nothing of the patient": removed("PatientID", "PatientName", "PatientSex", "PatientBirthDate", "StudyDate"),
    "lossy without a ratio": raw("LossyImageCompression", "CS", b"01"),
    "lossy with a ratio in words": raw("LossyImageCompressionRatio", "DS", b"ten "),
}


@pytest.mark.parametrize("kind", ODD_HEADERS)
def test_headers_that_do_not_conform_still_give_a_segmentation(kind, coarse_phantom, tmp_path):
    ct, labels = (sitk.ReadImage(str(coarse_phantom / name))[::4, ::4, :6] for name in ("ct.nii.gz", "labels.nii.gz"))
    labels[5, 5, 3] = 6
    slices = series_of(tmp_path / "ct", ct, change=ODD_HEADERS[kind])
    write_checked(tmp_path / "seg.dcm", slices, labels, AMOS, ALGORITHM)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert written.StudyInstanceUID == pydicom.dcmread(slices[0]).StudyInstanceUID
    (measures,) = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert float(measures.SpacingBetweenSlices) == pytest.approx(labels.GetSpacing()[2])
    assert written.PatientSex in ("", "M", "F", "O") and len(str(written.PatientName)) <= 64
    for element in written:
        assert element.value is not None or element.is_empty, element


def test_with_a_pseudonym_no_patient_data_are_copied(coarse_phantom, tmp_path):
    ct, labels = (sitk.ReadImage(str(coarse_phantom / name))[::4, ::4, :6] for name in ("ct.nii.gz", "labels.nii.gz"))
    labels[5, 5, 3] = 6
    known = {"PatientName": "Doe^Jane", "PatientID": "MRN4711", "PatientBirthDate": "19500101", "StudyDate": "20200101",
             "StudyDescription": "Abdomen of Jane", "AccessionNumber": "A99"}  # fmt: skip
    slices = series_of(tmp_path / "ct", ct, **known)
    write_checked(tmp_path / "seg.dcm", slices, labels, AMOS, ALGORITHM, "P-0123456789ab")
    # Element by element: the digits of a UID can contain those of a date by chance.
    texts = [str(element.value) for element in pydicom.dcmread(tmp_path / "seg.dcm").iterall() if element.VR != "UI"]
    assert not [value for value in known.values() if any(value in text for text in texts)]
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientID == "P-0123456789ab"


def test_a_segmentation_that_differs_is_removed(case, tmp_path, monkeypatch):
    import dcaseg.dicom.segmentation as check

    slices, labels, _ = case
    monkeypatch.setattr(check, "require_same_voxels", lambda *_: (_ for _ in ()).throw(OutputError("It differs.")))
    with pytest.raises(OutputError):
        write_checked(tmp_path / "seg.dcm", slices, labels, AMOS, ALGORITHM)
    assert list(tmp_path.iterdir()) == []
