"""``dca segment`` on folders of DICOM: which CT is taken, and the DICOM SEG that is written with the labels."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("highdicom", reason="the extra cohort is not installed")

import highdicom as hd
import pydicom

from dcaseg.dicom.ct_folder import find_one_ct
from dcaseg.dicom.segmentation import require_same_voxels
from dcaseg.errors import ImageError
from dcaseg.organs import AMOS
from dicom_archive import write_ct_series, write_enhanced_ct

QUICK = ("--no-scene", "--overlap", "0", "--attention-levels", "none", "--no-dominant-expert")


@pytest.fixture(scope="module")
def ct(coarse_phantom) -> sitk.Image:
    return sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))


@pytest.fixture(scope="module")
def archive(ct, tmp_path_factory) -> Path:
    """Two patients in folders of folders; one usable CT among a localizer, an MR, an iodine map and a letter."""
    folder = tmp_path_factory.mktemp("archive")
    write_ct_series(folder / "P1/1/ct", ct, uid="1.2.3.4", SeriesDescription="Bauch, venös")
    write_ct_series(folder / "P1/1/ct", ct[:, :, :1], stem="LOC", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_ct_series(folder / "P1/1/iodine", ct, ImageType=["DERIVED", "PRIMARY", "IODINE"])
    write_ct_series(folder / "P2/mr", ct, patient="P2", uid="1.2.3.5", Modality="MR")
    (folder / "P1/letter.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def segmented(archive, small_bundle, tmp_path_factory):
    """Standard output and error of ``dca segment`` on the archive, and the folder it made."""
    out = tmp_path_factory.mktemp("segmented") / "result"
    command = [sys.executable, "-m", "dcaseg.cli", "segment", archive, "-o", out, "--bundle", small_bundle]
    run = subprocess.run([*map(str, command), *QUICK], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run, out


def test_the_one_ct_of_a_mixed_archive_is_segmented_and_what_was_passed_over_is_told(segmented, archive):
    run, out = segmented
    assert "3 other series were skipped: MR, not CT; dual-energy map (IODINE); localizer." in run.stderr
    request = json.loads((out / "request.json").read_text())
    assert len(request["ct"]) == len(list((archive / "P1/1/ct").glob("IM*")))
    assert {Path(file).parent for file in request["ct"]} == {archive / "P1/1/ct"}
    assert f"{len(request['ct'])} DICOM files, the first is {archive}" in (out / "log.txt").read_text()


def test_highdicom_reads_every_voxel_of_the_dicom_seg_in_its_place(segmented, ct):
    labels = sitk.ReadImage(str(segmented[1] / "labels.nrrd"))
    np.testing.assert_allclose(labels.GetOrigin(), ct.GetOrigin(), atol=1e-3)
    segmentation = hd.seg.segread(segmented[1] / "segmentation.dcm")
    volume = segmentation.get_volume(combine_segments=True)
    to_index = np.linalg.inv(np.reshape(labels.GetDirection(), (3, 3)) * labels.GetSpacing())
    read = np.zeros(labels.GetSize()[::-1], dtype=np.uint8)
    for number in segmentation.segment_numbers:
        organ = AMOS.by_key[str(segmentation.get_segment_description(number).tracking_id)]
        voxels = np.argwhere(volume.array == number)
        points = np.c_[voxels, np.ones(len(voxels))] @ volume.affine.T[:, :3]
        x, y, z = np.rint((points - labels.GetOrigin()) @ to_index.T).astype(int).T
        read[z, y, x] = organ.label
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(labels))
    assert read.any()
    require_same_voxels(segmented[1] / "segmentation.dcm", labels, AMOS)


def test_the_dicom_seg_names_model_and_patient(segmented, archive):
    segmentation = pydicom.dcmread(segmented[1] / "segmentation.dcm")
    assert segmentation.PatientID == "P1"
    (algorithm,) = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "DCA random-weights"
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == "1.2.3.4"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error_in_it(segmented):
    run = subprocess.run(["dciodvfy", segmented[1] / "segmentation.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in run.stderr.splitlines() if line.startswith("Error")] == []
    assert "Segmentation" in run.stderr


def test_a_dicom_seg_can_be_left_out(dca, archive, small_bundle, tmp_path):
    run = dca("segment", archive, "-o", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--no-dicom-seg")
    assert run.code == 0, run.err
    assert not (tmp_path / "out/segmentation.dcm").exists()
    assert "segmentation.dcm" not in run.err


def test_without_highdicom_the_labels_are_written_and_a_line_says_what_to_install(
    dca, archive, small_bundle, tmp_path, monkeypatch
):
    from dcaseg.cli import segment as dicom_ct

    def find(name: str):
        return None if name == "highdicom" else importlib.util.find_spec(name)

    monkeypatch.setattr(dicom_ct, "find_spec", find)
    one = tmp_path / "one"
    shutil.copytree(archive / "P1/1/ct", one, ignore=shutil.ignore_patterns("LOC*"))
    run = dca("segment", one, "-o", tmp_path / "out", "--bundle", small_bundle, *QUICK)
    assert run.code == 0, run.err
    assert "needs highdicom. To install: pip install highdicom" in run.err
    assert (tmp_path / "out/labels.nrrd").is_file()
    assert not (tmp_path / "out/segmentation.dcm").exists()


def test_a_ct_without_uids_is_segmented_and_a_line_says_why_there_is_no_dicom_seg(dca, ct, small_bundle, tmp_path):
    write_ct_series(tmp_path / "in", ct, SeriesInstanceUID="", StudyInstanceUID="", SOPInstanceUID="", PatientID="")
    run = dca("segment", tmp_path / "in", "-o", tmp_path / "out", "--bundle", small_bundle, *QUICK)
    assert run.code == 0, run.err
    assert "A DICOM SEG was not written: the CT has no SOPInstanceUID" in run.err


def test_an_image_file_gets_no_dicom_seg_and_no_word_of_it(dca, coarse_phantom, small_bundle, tmp_path):
    run = dca("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", small_bundle, *QUICK)
    assert run.code == 0
    assert "DICOM" not in run.err
    assert not (tmp_path / "out/segmentation.dcm").exists()


def found(folder: Path, choice: str | None = None):
    return find_one_ct(folder, choice, folder / "out")


def refused(folder: Path, problem: str, choice: str | None = None) -> ImageError:
    with pytest.raises(ImageError, match=problem) as caught:
        found(folder, choice)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


def test_several_cts_are_listed_and_one_can_be_chosen_by_number_or_uid(ct, tmp_path):
    write_ct_series(tmp_path / "a", ct, uid="1.2.1", SeriesDescription="native")
    write_ct_series(tmp_path / "b", ct[:, :, :15], uid="1.2.2", patient="P2", SeriesDescription="venous")
    write_ct_series(tmp_path / "c", ct, uid="1.2.3", Modality="MR")
    message = refused(tmp_path, "contains 3 series").problem
    assert f"[1] CT, native, {ct.GetDepth()} slices, patient P1, UID 1.2.1" in message
    assert "[2] CT, venous, 15 slices, patient P2, UID 1.2.2" in message
    assert "not selected automatically: MR, not CT" in message
    assert len(found(tmp_path, "2").files) == 15
    assert len(found(tmp_path, "1.2.1").files) == ct.GetDepth()
    refused(tmp_path, "There is no series 7", "7")
    refused(tmp_path, "is not CT but MR", "3")


def test_a_series_that_is_not_taken_by_itself_can_be_asked_for(ct, tmp_path):
    write_ct_series(tmp_path / "a", ct, uid="1.2.1")
    write_ct_series(tmp_path / "b", ct, uid="1.2.2", ImageType=["DERIVED", "PRIMARY", "AXIAL", "VMI"])
    assert {file.parent.name for file in found(tmp_path).files} == {"a"}
    assert {file.parent.name for file in found(tmp_path, "1.2.2").files} == {"b"}


def test_the_only_series_is_taken_if_it_is_derived_or_coronal_too(ct, tmp_path):
    write_ct_series(tmp_path / "a", ct, ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert len(found(tmp_path / "a").files) == ct.GetDepth()
    coronal = sitk.Image(ct)
    coronal.SetDirection((1, 0, 0, 0, 0, 1, 0, -1, 0))
    write_ct_series(tmp_path / "b", coronal)
    assert len(found(tmp_path / "b").files) == ct.GetDepth()


def test_an_enhanced_ct_is_one_file_of_all_slices(ct, tmp_path):
    write_ct_series(tmp_path / "slices", ct)
    write_enhanced_ct(tmp_path / "in", tmp_path / "slices")
    assert found(tmp_path / "in").files == (tmp_path / "in/IM00001",)


def test_two_phases_in_one_series_are_two_cts(ct, tmp_path):
    for number in (1, 2):
        write_ct_series(tmp_path, ct, uid="1.2.3", study="1.2", AcquisitionNumber=number, stem=f"{number}-")
    message = refused(tmp_path, "contains 2 series").problem
    assert "acquisition 1, UID 1.2.3" in message
    refused(tmp_path, "1.2.3 is the UID of 2 CTs", "1.2.3")
    assert {file.name[:2] for file in found(tmp_path, "2").files} == {"2-"}


def test_a_damaged_file_among_the_slices_is_no_end_of_the_volume(ct, tmp_path):
    write_ct_series(tmp_path / "ct", ct)
    file = tmp_path / "ct/IM00007"
    file.write_bytes(file.read_bytes()[:132] + b"\x02\x00\x10\x00UI\xff\xff1.2.840")
    assert "IM00007 in ct cannot be used" in refused(tmp_path, "incomplete or damaged").problem


def test_one_damaged_file_alone_is_named(tmp_path):
    (tmp_path / "IM1").write_bytes(bytes(128) + b"DICM\x02\x00\x10\x00UI\xff\xff1.2.840")
    refused(tmp_path, "IM1: it is incomplete or damaged")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "contains no DICOM images")


def test_an_earlier_result_within_the_folder_is_not_looked_at(ct, tmp_path):
    write_ct_series(tmp_path / "in", ct, uid="1.2.3")
    write_ct_series(tmp_path / "in/out", ct, uid="1.2.4")
    assert {file.parent.name for file in found(tmp_path / "in").files} == {"in"}


def test_a_tilted_ct_is_segmented_with_the_option_that_the_refusal_names(dca, ct, small_bundle, tmp_path):
    from dicom_archive import moved

    write_ct_series(tmp_path / "in", ct, change=moved(1, lambda index: 1.4 * index))
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", "--bundle", small_bundle, *QUICK)
    run = dca(*command)
    assert (run.code, "--resample" in run.err) == (2, True)
    run = dca(*command, "--resample")
    assert run.code == 0, run.err
    assert "it was resampled to a right-angled grid" in " ".join(run.err.split())
    assert "resampled to a right-angled grid" in (tmp_path / "out/log.txt").read_text()
    labels = sitk.ReadImage(str(tmp_path / "out/labels.nrrd"))
    np.testing.assert_allclose(np.reshape(labels.GetDirection(), (3, 3)), np.eye(3), atol=1e-6)


def test_a_slice_that_vanishes_after_reading_costs_the_dicom_seg_alone(dca, ct, small_bundle, tmp_path, monkeypatch):
    import dcaseg.inference.pipeline as job

    write_ct_series(tmp_path / "ct", ct)
    write_images = job._write_images

    def then_a_slice_vanishes(*arguments):
        write_images(*arguments)
        sorted((tmp_path / "ct").iterdir())[3].unlink()

    monkeypatch.setattr(job, "_write_images", then_a_slice_vanishes)
    done = dca("segment", tmp_path / "ct", "-o", tmp_path / "out", *QUICK, "--bundle", small_bundle)
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "labels.nrrd").is_file() and not (tmp_path / "out" / "segmentation.dcm").exists()
    (note,) = (line for line in done.err.splitlines() if "segmentation.dcm was not written" in line)
    assert "no longer exists" in note


def test_whatever_fails_in_the_dicom_seg_is_a_note(dca, ct, small_bundle, tmp_path, monkeypatch):
    import dcaseg.dicom.segmentation as check

    def fail(*arguments):
        raise KeyError("a header that nobody thought of")

    write_ct_series(tmp_path / "ct", ct)
    monkeypatch.setattr(check, "write_checked", fail)
    done = dca("segment", tmp_path / "ct", "-o", tmp_path / "out", *QUICK, "--bundle", small_bundle)
    assert done.code == 0 and "a header that nobody thought of" in done.err
    assert (tmp_path / "out" / "volumes.csv").is_file()
