"""Which series of a mixed archive are selected, and why others are skipped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dcaseg.dicom.archive import (
    Rules,
    Selection,
    gathered,
    group,
    order_slices,
    read_header,
    remove_duplicates,
    select,
    split_into_volumes,
)
from dcaseg.errors import ImageError
from dcaseg.imaging.readers import read_ct
from dicom_archive import moved, write_ct_series, write_enhanced_ct

SLICES = 24
LONG_NAME = "ä" * 100


@pytest.fixture
def ct() -> sitk.Image:
    random = np.random.default_rng(0)
    image = sitk.GetImageFromArray(random.integers(-1000, 1000, (SLICES, 12, 10)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 3.0))
    image.SetOrigin((-10.0, -20.0, 30.0))
    return image


def headers(folder: Path):
    found = [read_header(file) for file in sorted(folder.rglob("*")) if file.is_file()]
    return [header for header in found if header is not None]


def selected(folder: Path, **rules) -> Selection:
    (series,) = group(headers(folder))
    return select(series, Rules(**rules))


def test_an_axial_ct_is_selected_with_its_slices_in_order(ct, tmp_path):
    write_ct_series(tmp_path / "a", ct)
    stacks = split_into_volumes(selected(tmp_path).images, "a", 20)
    assert list(stacks) == [""]
    assert [image.position[2] for image in stacks[""].images] == pytest.approx(
        [30.0 + 3 * index for index in range(SLICES)]
    )


def test_patients_studies_and_series_in_one_folder_are_separated(ct, tmp_path):
    for number, (patient, study) in enumerate([("P1", "1.2.1"), ("P1", "1.2.1"), ("P1", "1.2.2"), ("P2", "1.2.3")]):
        write_ct_series(tmp_path, ct, patient=patient, study=study, stem=f"{number}-")
    found = group(headers(tmp_path))
    assert [(one.patient, one.study, len(one.images)) for one in found] == [
        ("P1", "1.2.1", SLICES), ("P1", "1.2.1", SLICES), ("P1", "1.2.2", SLICES), ("P2", "1.2.3", SLICES),
    ]  # fmt: skip


def test_the_same_series_uid_in_two_patients_makes_two_series(ct, tmp_path):
    write_ct_series(tmp_path / "a", ct, uid="1.2.3", patient="P1")
    write_ct_series(tmp_path / "b", ct, uid="1.2.3", patient="P2")
    assert [one.patient for one in group(headers(tmp_path))] == ["P1", "P2"]


@pytest.mark.parametrize(
    ("reason", "attributes"),
    [
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (r"derived \(DERIVED\\SECONDARY\\MPR\)", {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
        (r"dual-energy map \(VMI\)", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"]}),
        ("dual-energy map", {"ImageType": ["DERIVED", "PRIMARY", "IODINE_MAP"]}),
        ("voxels in MGML, not in HU", {"RescaleType": "MGML"}),
        ("MR, not CT", {"Modality": "MR"}),
        ("secondary capture", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("not axial", {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}),
    ],
)
def test_series_that_are_not_axial_cts_are_skipped_with_a_reason(reason, attributes, ct, tmp_path):
    write_ct_series(tmp_path, ct, **attributes)
    chosen = selected(tmp_path)
    assert re.search(reason, chosen.reason)
    assert chosen.images == ()


def test_enhanced_ct_is_read_like_its_slices(ct, tmp_path):
    write_ct_series(tmp_path / "slices", ct)
    write_enhanced_ct(tmp_path / "enhanced", tmp_path / "slices")
    chosen = selected(tmp_path / "enhanced")
    assert (chosen.reason, [image.frames for image in chosen.images]) == ("", [SLICES])
    require_volume(tmp_path / "enhanced", ct)


def test_a_short_series_is_skipped_unless_fewer_slices_are_allowed(ct, tmp_path):
    write_ct_series(tmp_path, ct[:, :, :5])
    assert selected(tmp_path).reason == "only 5 slices, fewer than 20"
    assert len(selected(tmp_path, min_slices=5).images) == 5


def test_derived_series_are_selected_on_request(ct, tmp_path):
    write_ct_series(tmp_path, ct, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    assert selected(tmp_path, derived=True).reason == ""


def test_images_derived_only_by_lossy_compression_are_selected_with_a_note(ct, tmp_path):
    write_ct_series(tmp_path, ct, ImageType=["DERIVED", "PRIMARY", "AXIAL"], LossyImageCompression="01")
    assert selected(tmp_path).notes == ("the images have lossy compression",)


def test_a_localizer_in_a_series_is_left_out(ct, tmp_path):
    def first_is_localizer(dataset, index):
        if index == 0:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_ct_series(tmp_path, ct, change=first_is_localizer)
    chosen = selected(tmp_path)
    assert len(chosen.images) == SLICES - 1
    assert chosen.notes == ("1 localizer was left out",)


def test_images_without_uids_are_grouped_by_folder_and_geometry(ct, tmp_path):
    for folder in ("a", "b"):
        write_ct_series(
            tmp_path / folder, ct, SeriesInstanceUID="", StudyInstanceUID="", SOPInstanceUID="", PatientID=""
        )
    found = group(headers(tmp_path))
    assert [len(one.images) for one in found] == [SLICES, SLICES]
    assert order_slices(found[0].images, "a").slices == SLICES


def test_copies_of_images_are_used_once(ct, tmp_path):
    write_ct_series(tmp_path / "a", ct)
    (tmp_path / "copy").mkdir()
    for file in list((tmp_path / "a").iterdir())[:3]:
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    kept, copies = remove_duplicates(selected(tmp_path).images)
    assert (len(kept), copies) == (SLICES, 3)


def test_different_images_with_one_uid_are_refused(ct, tmp_path):
    write_ct_series(tmp_path, ct, SOPInstanceUID="1.2.3.4")
    with pytest.raises(ValueError, match="different images with the same UID"):
        remove_duplicates(selected(tmp_path).images)


def test_acquisitions_in_one_series_become_separate_volumes(ct, tmp_path):
    write_ct_series(tmp_path, ct, uid="1.2.3", study="1.2", AcquisitionNumber=1, stem="A")
    write_ct_series(tmp_path, ct, uid="1.2.3", study="1.2", AcquisitionNumber=2, stem="B")
    stacks = split_into_volumes(selected(tmp_path).images, "two", 20)
    assert {number: stack.slices for number, stack in stacks.items()} == {"1": SLICES, "2": SLICES}


@pytest.mark.parametrize(
    ("problem", "change"),
    [
        ("is missing 1 slice", moved(2, lambda index: 3.0 * (index > 9))),
        ("same positions", moved(2, lambda index: -3.0 * (index % 2))),
        ("unevenly spaced", moved(2, lambda index: 1.2 * (index > 9))),
        ("tilted by 15.0 degrees", moved(1, lambda index: 3.0 * index * float(np.tan(np.radians(15))))),
    ],
)
def test_slices_that_do_not_form_a_volume_are_refused(problem, change, ct, tmp_path):
    write_ct_series(tmp_path, ct, change=change)
    with pytest.raises(ImageError, match=problem):
        split_into_volumes(selected(tmp_path).images, "faulty", 20)


@pytest.mark.parametrize("name", ["plain", "Bauch Übersicht ÅÄÖ", "腹部", f"{LONG_NAME}/{LONG_NAME}/{LONG_NAME}"])
def test_a_series_is_read_whatever_its_names(name, ct, tmp_path):
    require_read(tmp_path / name, ct)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEGLosslessSV1, JPEG2000Lossless])
def test_a_series_is_read_whatever_its_lossless_compression(syntax, ct, tmp_path):
    require_read(tmp_path, ct, syntax=syntax)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_a_series_is_read_whatever_the_encoding_of_its_headers(syntax, ct, tmp_path):
    write_ct_series(tmp_path / "written", ct)
    (tmp_path / "in").mkdir()
    for file in (tmp_path / "written").iterdir():
        dataset = pydicom.dcmread(file)
        if syntax == ExplicitVRBigEndian:
            dataset["PixelData"].VR = "OW"
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
        pydicom.dcmwrite(tmp_path / "in" / file.name, _plain(dataset), enforce_file_format=True, **encoding)
    require_volume(tmp_path / "in", ct)


def _plain(dataset):
    """A copy of ``dataset`` without pydicom's record of its encoding, so that it can be written in another one."""
    plain = pydicom.Dataset({element.tag: element for element in dataset})
    plain.file_meta = dataset.file_meta
    plain.preamble = bytes(128)
    return plain


def require_read(folder: Path, ct: sitk.Image, **attributes) -> None:
    write_ct_series(folder, ct, **attributes)
    require_volume(folder, ct)


def require_volume(tmp_path: Path, ct: sitk.Image) -> None:
    """Assert that the one series in the folder equals ``ct``, voxel by voxel."""
    files = [Path(image.file) for image in order_slices(selected(tmp_path).images, "test").images]
    with gathered(files, "test") as folder:
        read = read_ct(folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(ct))
    np.testing.assert_allclose(read.GetOrigin(), ct.GetOrigin(), atol=1e-4)


def test_a_file_that_vanished_after_the_search_is_named(tmp_path):
    with pytest.raises(ImageError, match="IM0001 cannot be read"), gathered([tmp_path / "IM0001"], "x"):
        pass


def test_rounding_of_the_axes_drops_no_slice_and_divides_no_series(ct, tmp_path):
    """The cosines differ by 2e-5, on the two sides of a border of rounding."""

    def jitter(dataset, index):
        sine = 0.00501 if index % 3 else 0.00499
        dataset.ImageOrientationPatient = [0.9999875, sine, 0, -sine, 0.9999875, 0]

    def in_a_series_of_its_own(dataset, index):
        jitter(dataset, index)
        dataset.SeriesInstanceUID = f"1.2.{index + 1}"

    def without_uid(dataset, index):
        sine = 0.000501 if index % 3 else 0.000499
        dataset.ImageOrientationPatient = [1, sine, 0, -sine, 1, 0]
        dataset.SeriesInstanceUID = ""

    for name, change in (("one", jitter), ("apart", in_a_series_of_its_own), ("none", without_uid)):
        write_ct_series(tmp_path / name, ct, change=change)
        require_volume(tmp_path / name, ct)
        (found,) = group(headers(tmp_path / name))
        assert len(found.images) == SLICES
        read = read_ct(tmp_path / name)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(ct))


def test_slices_that_are_nearly_parallel_are_refused_and_not_taken_for_localizers(ct, tmp_path):
    def turn_one(dataset, index):
        if index == 5:
            dataset.ImageOrientationPatient = [0.99998, 0.006, 0, -0.006, 0.99998, 0]

    write_ct_series(tmp_path, ct, change=turn_one)
    with pytest.raises(ImageError, match="not parallel"):
        read_ct(tmp_path)


def test_a_multi_frame_file_alone_is_checked_like_one_in_a_folder(ct, tmp_path):
    write_ct_series(tmp_path / "slices", ct)
    write_enhanced_ct(tmp_path / "in", tmp_path / "slices")
    (file,) = (tmp_path / "in").iterdir()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(file)), sitk.GetArrayFromImage(ct))
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    for path in (file, tmp_path / "in"):
        with pytest.raises(ImageError, match=r"incomplete or damaged DICOM file: only \d+ of"):
            read_ct(path)
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(whole))
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = ["600", "600"]
    dataset.save_as(file)
    for path in (file, tmp_path / "in"):
        with pytest.raises(ImageError, match="impossible voxel spacing"):
            read_ct(path)
