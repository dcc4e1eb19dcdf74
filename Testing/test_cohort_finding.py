"""The search for cases in the input of a cohort."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import SimpleITK as sitk

pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from cohort_archive import EXPECTED, ONLY_BY_VOXELS, write_archive
from dcaseg.cohort import discovery
from dcaseg.cohort.case import make_folder_name
from dcaseg.cohort.discovery import Findings, find
from dcaseg.dicom.archive import Rules
from dcaseg.errors import UserError
from dicom_archive import write_ct_series, write_enhanced_ct


@pytest.fixture(scope="module")
def archive(tmp_path_factory, coarse_phantom) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, coarse_phantom)
    return folder


def found_in(folder: Path) -> Findings:
    return find(folder, folder / "out", Rules())


def test_every_series_and_file_of_a_mixed_archive_is_accounted_for(archive):
    found = found_in(archive)
    cases = {case.source for case in found.cases}
    rejected = {each.source: each for each in found.rejected}
    assert cases | set(rejected) == set(EXPECTED)
    assert cases - set(ONLY_BY_VOXELS) == {source for source, (status, _) in EXPECTED.items() if status == "ok"}
    for source, each in rejected.items():
        status, reason = EXPECTED[source]
        assert each.status == status
        assert reason in each.reason
    assert found.ignored_files == 30


def test_a_second_search_finds_the_same_cases(archive):
    first, second = found_in(archive), found_in(archive)
    assert [(case.key, case.fingerprint) for case in first.cases] == [
        (case.key, case.fingerprint) for case in second.cases
    ]
    assert len({case.key for case in first.cases} | {each.key for each in first.rejected}) == len(EXPECTED)


def test_a_changed_case_keeps_its_key_but_not_its_fingerprint(archive, tmp_path):
    shutil.copytree(archive / "plain", tmp_path / "plain")
    (before,) = (case for case in found_in(tmp_path).cases if case.source.endswith("ct.nii.gz"))
    os.utime(tmp_path / "plain/ct.nii.gz", (1, 1))
    (after,) = (case for case in found_in(tmp_path).cases if case.source.endswith("ct.nii.gz"))
    assert before.key == after.key
    assert before.fingerprint != after.fingerprint


def test_dicom_files_corrected_in_place_change_the_case(coarse_phantom, tmp_path):
    """Their UIDs and positions stay."""
    write_ct_series(tmp_path / "ct", sitk.ReadImage(str(coarse_phantom / "ct.nii.gz")))
    fingerprints = [found_in(tmp_path).cases[0].fingerprint]
    files = sorted((tmp_path / "ct").iterdir())
    times = {file: file.stat().st_mtime_ns for file in files}
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.RescaleIntercept = -1024
        dataset.save_as(file)
        os.utime(file, ns=(times[file], times[file]))
    fingerprints.append(found_in(tmp_path).cases[0].fingerprint)
    os.utime(files[3])
    fingerprints.append(found_in(tmp_path).cases[0].fingerprint)
    assert len(set(fingerprints)) == 3


def test_volumes_in_files_of_the_same_name_are_separate_cases(coarse_phantom, tmp_path):
    ct = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    for number, name in enumerate("AB"):
        write_ct_series(tmp_path / "slices" / name, ct + number, uid="1.2.3.4", study="1.2.5")
        write_enhanced_ct(tmp_path / "in" / name, tmp_path / "slices" / name)
        file = tmp_path / "in" / name / "IM00001"
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3.4", "1.2.5"
        dataset.save_as(file)
    found = found_in(tmp_path / "in")
    assert len({case.key for case in found.cases}) == len({case.name for case in found.cases}) == 2
    assert found.rejected == []


def test_a_case_that_cannot_be_distinguished_from_another_is_rejected(coarse_phantom, tmp_path, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(coarse_phantom, tmp_path / name)
    monkeypatch.setattr(discovery, "compute_digest", lambda parts: "same" if next(iter(parts)) == "file" else "other")
    found = found_in(tmp_path)
    assert len(found.cases) == 1 and "cannot be distinguished" in [each.reason for each in found.rejected][-1]


def test_series_uids_shared_by_two_patients_are_noted(archive):
    notes = {case.source: " ".join(case.notes) for case in found_in(archive).cases}
    assert "has the same series UID" in notes["anna/ct"]
    assert "has the same series UID" in notes["Jürgen Öz/腹部"]


def test_an_unusable_file_in_the_folder_of_a_series_is_noted(archive, tmp_path):
    shutil.copytree(archive / "anna/ct", tmp_path / "ct")
    shutil.copy(archive / "broken/IM00007", tmp_path / "ct/zz")
    (case,) = found_in(tmp_path).cases
    assert case.notes == ("1 unusable file in its folder: slices may be missing at either end",)


def test_an_empty_folder_has_no_cases(tmp_path):
    found = found_in(tmp_path)
    assert (found.cases, found.rejected, found.ignored_files) == ([], [], 0)


def test_a_missing_input_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        found_in(tmp_path / "nothing")


def test_the_input_may_be_one_file(coarse_phantom, tmp_path):
    (case,) = find(coarse_phantom / "ct.nii.gz", tmp_path, Rules()).cases
    assert case.source == "ct.nii.gz"


@pytest.fixture
def ignored_files() -> Iterator[Path]:
    """20 folders of 1000 empty files each, in memory if possible, since some disks are slow to create them."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        for folder in (Path(name) / str(number) for number in range(20)):
            folder.mkdir()
            for number in range(1000):
                (folder / f"{number}.txt").touch()
        yield Path(name)


@pytest.mark.slow
def test_twenty_thousand_ignored_files_are_counted_quickly_and_take_no_memory(ignored_files):
    reported: list[int] = []
    cpu = time.process_time()
    found = find(ignored_files, ignored_files / "out", Rules(), lambda files, text: reported.append(files))
    assert time.process_time() - cpu < 5
    assert (found.cases, found.rejected, found.ignored_files) == ([], [], 20_000)
    assert reported[-1] == 20_000
    used: list[int] = []
    tracemalloc.start()
    find(ignored_files, ignored_files / "out", Rules(), lambda *_: used.append(tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    # Five reports apart is one folder apart: a report every 200 files, 1000 files per folder.
    growth = [later - earlier for earlier, later in zip(used, used[5:], strict=False)]
    assert statistics.median(growth) < 1000


def test_folders_too_deep_for_the_system_are_reported(archive, tmp_path, monkeypatch):
    shutil.copytree(archive / "plain", tmp_path / "plain")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    (each,) = (each for each in found_in(tmp_path).rejected if each.status == "failed")
    assert each.reason == "cannot be read: File name too long"
    assert len(found_in(tmp_path).cases) == 3


def test_the_cohorts_own_folder_is_ignored(archive, tmp_path):
    shutil.copytree(archive / "plain", tmp_path / "out/plain")
    assert found_in(tmp_path).cases == []


def test_links_to_folders_are_not_followed(archive, tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(archive)
    assert found_in(tmp_path).cases == []


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root and Windows may read everything")
def test_unreadable_files_are_reported(archive, tmp_path):
    shutil.copytree(archive / "plain", tmp_path / "plain")
    (tmp_path / "plain/notes0.txt").chmod(0)
    (each,) = (each for each in found_in(tmp_path).rejected if each.status == "failed")
    assert each.reason == "cannot be read: Permission denied"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_undecodable_names_are_shown_with_replacement_characters(archive, tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    shutil.copytree(os.fsencode(archive / "anna/ct"), folder)
    (case,) = found_in(tmp_path).cases
    assert case.source == "\ufffd\ufffd"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_reasons_with_undecodable_names_are_valid_text(archive, tmp_path):
    shutil.copytree(archive / "bert/one-uid", tmp_path / "\udcff")
    for file in list((tmp_path / "\udcff").iterdir()):
        file.rename(file.with_name(f"\udcfe{file.name}"))
    (each,) = found_in(tmp_path).rejected
    assert "\ufffdIM00000 and \ufffdIM00007 are different images" in each.reason
    each.reason.encode()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_files_whose_names_look_alike_are_separate_cases(archive, tmp_path):
    for name in (b"\xff.nii.gz", b"\xfe.nii.gz"):
        shutil.copy(archive / "plain/ct.nii.gz", os.fsencode(tmp_path) + b"/" + name)
    cases = found_in(tmp_path).cases
    assert [case.source for case in cases] == ["\ufffd.nii.gz"] * 2
    assert len({case.key for case in cases}) == 2


def test_series_without_uids_in_one_folder_are_separated(archive, tmp_path):
    ct = sitk.ReadImage(str(archive / "plain/ct.nii.gz"))
    nameless = {"SeriesInstanceUID": "", "SOPInstanceUID": "", "StudyInstanceUID": "", "PatientID": ""}
    write_ct_series(tmp_path, ct, **nameless)
    coronal = [1, 0, 0, 0, 0, -1]
    write_ct_series(tmp_path, ct[:, :, :1], stem="LOC", ImageOrientationPatient=coronal, **nameless)
    found = found_in(tmp_path)
    (case,), (rejected,) = found.cases, found.rejected
    assert (len(case.files), rejected.reason) == (ct.GetDepth(), "not axial")
    assert case.key != rejected.key


def test_macos_companion_files_are_ignored(archive, tmp_path):
    shutil.copytree(archive / "plain", tmp_path / "plain")
    (tmp_path / "plain/._ct.nii.gz").write_bytes(b"\0\5\x16\7" + bytes(100))
    before = len(found_in(archive / "plain").cases)
    assert len(found_in(tmp_path).cases) == before


@pytest.mark.parametrize("text", ["../../etc", "a" * 500, "", "...", "Bauch, venös\n", "腹" * 90])
def test_result_folders_have_short_names_without_separators(text):
    name = make_folder_name(text, "0123456789abcdef")
    assert name.endswith("-01234567")
    assert not set(name) & set("/\\\n:")
    assert not name.startswith(".")
    assert len(name.encode()) <= 160


@pytest.mark.parametrize(("header", "line"), [("ct.mhd", "ElementDataFile = ct.raw"), ("ct.nhdr", "data file: ct.raw")])
def test_a_change_of_the_file_with_the_voxels_changes_the_case(tmp_path, header, line):
    (tmp_path / header).write_text(f"first line\n{line}\n")
    (tmp_path / "ct.raw").write_bytes(b"old")
    before = found_in(tmp_path).cases[0].fingerprint
    assert found_in(tmp_path).cases[0].fingerprint == before
    (tmp_path / "ct.raw").write_bytes(b"newer")
    assert found_in(tmp_path).cases[0].fingerprint != before
