"""Cohorts whose results do not identify the patients, and the permissions of results."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import sqlite3
import stat
import struct
from pathlib import Path

import pydicom
import pytest
import SimpleITK as sitk

pytest.importorskip("highdicom", reason="the extra cohort is not installed")
pytest.importorskip("distributed", reason="the extra cohort is not installed")

from dcaseg.cohort.case import Case, Outcome, Rejected
from dcaseg.cohort.pseudonyms import Pseudonyms, get_or_create_key, read_key, redact_outcome
from dcaseg.errors import UserError
from dicom_archive import write_ct_series

# Long enough not to occur by chance in a UID or an encoded picture.
SECRETS = ("PID-4711", "Mueller", "20200131", "Abdomen of M", "Doe_John")


@pytest.fixture(scope="module")
def archive(coarse_phantom, tmp_path_factory) -> Path:
    """Studies of one patient, and a file of another, with the patients' names in paths and headers."""
    root = tmp_path_factory.mktemp("archive")
    ct = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    about = {"StudyDate": "20200131", "SeriesDescription": "Abdomen of Mueller", "PatientName": "Mueller^Eva"}
    write_ct_series(root / "Mueller_Eva" / "1", ct, patient="PID-4711", **about)
    write_ct_series(root / "Mueller_Eva" / "2", ct, patient="PID-4711", **about)
    write_ct_series(root / "Mueller_Eva" / "short", ct[:, :, :5], patient="PID-4711", **about)
    sitk.WriteImage(ct, str(root / "Doe_John.nii.gz"))
    # A note will name the file: its sform and its qform differ by a fraction of a voxel.
    header = bytearray(gzip.decompress((root / "Doe_John.nii.gz").read_bytes()))
    (shift,) = struct.unpack_from("<f", header, 292)
    struct.pack_into("<f", header, 292, shift + 0.2 * ct.GetSpacing()[0])
    (root / "Doe_John.nii.gz").write_bytes(gzip.compress(bytes(header)))
    (root / "Mueller_Eva" / "damaged.nii.gz").write_bytes(b"Mueller")
    return root


@pytest.fixture(scope="module")
def run(archive, small_bundle, tmp_path_factory):
    """The folder of a pseudonymized cohort, and the printed text."""
    import os
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("out") / "cohort"
    command = [
        *(sys.executable, "-m", "dcaseg.cli", "cohort", str(archive), "-o", str(out), "--pseudonymize"),
        *("--bundle", str(small_bundle), "--device", "cpu", "--workers", "1", "--dashboard-port", "0"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


@pytest.mark.slow
def test_nothing_that_is_written_identifies_a_patient(run):
    out, printed = run
    written = [*out.rglob("*")]
    assert len([file for file in written if file.name == "case.json"]) == 3
    for secret in SECRETS:
        assert secret not in printed
        for file in written:
            assert secret not in file.relative_to(out).as_posix(), file
            if file.is_file() and file.suffix not in (".jpg", ".nrrd"):
                assert secret.encode() not in file.read_bytes(), (secret, file)


@pytest.mark.slow
def test_a_patient_has_one_pseudonym_that_the_key_reproduces(run):
    out, _ = run
    key = (out / "pseudonym.key").read_bytes().strip()
    expected = "P-" + hmac.new(key, b"patient\x00PID-4711", hashlib.sha256).hexdigest()[:12]
    patients = sorted(json.loads(file.read_text())["patient"] for file in out.rglob("case.json"))
    assert patients[1:] == [expected] * 2 and patients[0].startswith("C-")
    for file in out.rglob("segmentation.dcm"):
        assert str(pydicom.dcmread(file).PatientID) == expected
    connection = sqlite3.connect(out / "cohort.sqlite")
    sources = [source for (source,) in connection.execute("SELECT source FROM cases")]
    connection.close()
    assert len(set(sources)) == 5, "all sources differ"


@pytest.mark.slow
def test_the_same_cohort_resumes_but_not_with_another_key(run, archive, dca, small_bundle, tmp_path):
    out, _ = run
    options = ("cohort", archive, "-o", out, "--bundle", small_bundle, "--device", "cpu")
    other = tmp_path / "other.key"
    other.write_text("another secret that is long enough")
    assert dca(*options, "--pseudonymize", "--pseudonym-key", other).code == 2
    assert dca(*options).code == 2, "nor without pseudonyms"
    assert dca(*options, "--pseudonym-key", other).code == 2
    again = dca(*options, "--pseudonymize", "--workers", 1)
    assert again.code == 0 and "3 ok" in again.out


@pytest.mark.slow
def test_only_the_owner_can_read_results(run):
    out, _ = run
    modes = {file.relative_to(out): stat.S_IMODE(file.stat().st_mode) for file in [*out.rglob("*"), out]}
    assert {mode for file, mode in modes.items() if (out / file).is_dir()} == {0o700}
    assert {mode for file, mode in modes.items() if (out / file).is_file()} == {0o600}


def test_a_key_is_created_once_and_must_be_long_enough(tmp_path):
    key = get_or_create_key(tmp_path)
    assert key == get_or_create_key(tmp_path) and len(key) == 64
    (tmp_path / "short").write_text("secret")
    for file in (tmp_path / "short", tmp_path / "none"):
        with pytest.raises(UserError):
            read_key(file)


def test_reasons_do_not_contain_file_or_folder_names():
    pseudonyms = Pseudonyms(b"0123456789abcdef")
    case = Case(
        "k", "PID-4711-k", "Mueller_Eva/1", ("/data/Mueller_Eva/1/IM1.dcm",), True, "f", "PID-4711", "20200131", "Eva"
    )
    hidden = pseudonyms.pseudonymize_case(case)
    assert hidden.files == case.files and "PID-4711" not in hidden.name + hidden.source + hidden.key
    assert (hidden.study_date, hidden.description) == ("", "")
    outcome = redact_outcome(Outcome("k", "failed", "IM1.dcm in Mueller_Eva cannot be read"), case)
    assert outcome.reason == "(hidden) in (hidden) cannot be read"
    rejected = Rejected("r", "Mueller_Eva/IM1.dcm", "failed", "Mueller_Eva/IM1.dcm is damaged", "PID-4711")
    assert "Mueller" not in pseudonyms.pseudonymize_rejected(rejected, Path("/data")).reason


def test_a_run_that_ends_while_it_writes_the_key_leaves_no_half_key(tmp_path, monkeypatch):
    from dcaseg.cohort import pseudonyms

    def end(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pseudonyms.os, "fsync", end)
        with pytest.raises(KeyboardInterrupt):
            get_or_create_key(tmp_path)
    assert not (tmp_path / "pseudonym.key").exists()
    assert len(get_or_create_key(tmp_path)) == 64


def test_folders_with_ordinary_names_do_not_make_sentences_unreadable():
    case = Case("k", "n", "in/ct", ("/data/in/Eva/ct.nii.gz",), False, "f")
    outcome = redact_outcome(Outcome("k", "ok", notes=("Check the data in Eva: ct.nii.gz has no origin.",)), case)
    assert outcome.notes == ("Check the data in (hidden): (hidden) has no origin.",)
