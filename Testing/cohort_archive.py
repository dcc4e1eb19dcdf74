"""A mixed archive for cohort tests: good series, all kinds of faulty ones, and files that are not images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dicom_archive import claim_unknown_compression, moved, write_ct_series, write_enhanced_ct

# A path of 600 bytes in three folders, which nothing may truncate.
LONG = "/".join(["ä" * 100] * 3)

# Expected status of each source, and a part of its reason or notes.
EXPECTED = {
    "anna/ct": ("ok", "2 duplicate images ignored"),
    "anna/localizer": ("skipped", "localizer"),
    "anna/mr": ("skipped", "MR, not CT"),
    "anna/iodine": ("skipped", "dual-energy map"),
    "anna/enhanced": ("ok", ""),
    "anna/coronal": ("skipped", "not axial"),
    "anna/short": ("skipped", "only 5 slices, fewer than 20"),
    "anna/capture": ("skipped", "secondary capture"),
    "bert/mpr": ("skipped", "derived"),
    f"bert/{LONG}/rle": ("ok", ""),
    "bert/tilted": ("failed", "tilted by 10.0 degrees"),
    "bert/gap": ("failed", "is missing 1 slice"),
    "bert/doubled": ("failed", "slices at the same positions"),
    "bert/uneven": ("failed", "unevenly spaced slices"),
    "bert/one-uid": ("failed", "are different images with the same UID"),
    "bert/htj2k": ("failed", "cannot be decoded"),
    "Jürgen Öz/腹部": ("ok", "has the same series UID"),
    "nameless": ("ok", "no series UID"),
    "broken/IM00007": ("failed", "damaged DICOM"),
    "broken/empty.dcm": ("failed", "empty"),
    "broken/circle": ("failed", "cannot be read: Too many levels of symbolic links"),
    "broken/sector": ("failed", "cannot be read: Input/output error"),
    "plain/ct.nii.gz": ("ok", ""),
    "plain/labels.nii.gz": ("skipped", "label map"),
    "plain/torn.nii.gz": ("failed", "incomplete"),
    "plain/flat.nrrd": ("failed", "same value"),
}

# These faults only show in the voxels, which the search does not read.
ONLY_BY_VOXELS = ("bert/htj2k", "plain/torn.nii.gz", "plain/flat.nrrd")


def count(status: str) -> int:
    """Number of sources that must end with ``status``."""
    return sum(expected == status for expected, _ in EXPECTED.values())


SUMMARY = f"{count('failed')} failed, {count('ok')} ok, {count('skipped')} skipped"


def write_archive(folder: Path, phantom: Path) -> None:
    """Write the archive into ``folder``, made from the CT in the folder ``phantom``. Its broken files need Linux."""
    ct = sitk.ReadImage(str(phantom / "ct.nii.gz"))
    spacing = ct.GetSpacing()[2]

    def write(name: str, image: sitk.Image = ct, **more: object) -> None:
        write_ct_series(folder / name, image, **{"patient": name.split("/")[0], **more})

    write("anna/ct", uid="1.2.3.4")
    write("anna/localizer", ct[:, :, :1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write("anna/mr", Modality="MR")
    write("anna/iodine", ImageType=["DERIVED", "PRIMARY", "IODINE"])
    write("anna/coronal", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write("anna/short", ct[:, :, :5])
    write("anna/capture", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_enhanced_ct(folder / "anna/enhanced", folder / "anna/ct")
    write("bert/mpr", ImageType=["DERIVED", "SECONDARY", "MPR"])
    write(f"bert/{LONG}/rle", syntax="1.2.840.10008.1.2.5")
    write("bert/tilted", change=moved(1, lambda index: spacing * index * float(np.tan(np.radians(10)))))
    write("bert/gap", change=moved(2, lambda index: spacing * (index > 9)))
    write("bert/doubled", change=moved(2, lambda index: -spacing * (index % 2)))
    write("bert/uneven", change=moved(2, lambda index: 0.4 * spacing * (index > 9)))
    write("bert/one-uid", SOPInstanceUID="1.2.3.4.5")
    write("bert/htj2k")
    for file in (folder / "bert/htj2k").iterdir():
        claim_unknown_compression(file)
    # Another patient has the same series UID.
    write("Jürgen Öz/腹部", uid="1.2.3.4", PatientID="Ö-1", SeriesDescription="Bauch, venös")
    write("nameless", SeriesInstanceUID="", SOPInstanceUID="", StudyInstanceUID="", PatientID="")
    (folder / "anna/ct copies").mkdir()
    for file in sorted((folder / "anna/ct").iterdir())[:2]:
        shutil.copy(file, folder / "anna/ct copies")
    _write_broken(folder / "broken", next((folder / "anna/ct").iterdir()).read_bytes())
    plain = folder / "plain"
    plain.mkdir()
    for name in ("ct.nii.gz", "labels.nii.gz"):
        (plain / name).write_bytes((phantom / name).read_bytes())
    content = (phantom / "ct.nii.gz").read_bytes()
    (plain / "torn.nii.gz").write_bytes(content[: len(content) // 2])
    sitk.WriteImage(ct * 0, str(plain / "flat.nrrd"))
    for number in range(30):
        (plain / f"notes{number}.txt").write_text("no image")


def _write_broken(folder: Path, whole: bytes) -> None:
    folder.mkdir()
    (folder / "IM00007").write_bytes(whole[:132] + b"\x02\x00\x10\x00UI\xff\xff1.2.840")
    (folder / "empty.dcm").touch()
    (folder / "circle").symlink_to("circle")
    # Opens like any file, but reading its start fails like on a broken disk. Permissions would not stop root.
    (folder / "sector").symlink_to("/proc/self/mem")
