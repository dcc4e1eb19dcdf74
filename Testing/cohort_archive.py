"""A mixed archive for tests of cohorts: good series, all kinds of faults, and files that are no images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from dicom_archive import write_ct_series

# What must become of each source: status, and a part of the reason or notes.
EXPECTED = {
    "anna/ct": ("ok", ""),
    "anna/localizer": ("skipped", "localizer"),
    "anna/mr": ("skipped", "MR, no CT"),
    "anna/iodine": ("skipped", "dual-energy map"),
    "bert/mpr": ("skipped", "derived"),
    "bert/rle": ("ok", ""),
    "bert/tilted": ("failed", "tilted by 10.0 degrees"),
    "bert/gap": ("failed", "lacks 1 slice"),
    "Jürgen Öz/腹部": ("ok", "also that of another patient"),
    "nameless": ("ok", "without a series UID"),
    "broken/IM00007": ("failed", "damaged DICOM"),
    "broken/empty.dcm": ("failed", "empty"),
    "plain/ct.nii.gz": ("ok", ""),
    "plain/labels.nii.gz": ("skipped", "label map"),
    "plain/torn.nii.gz": ("failed", "incomplete"),
    "plain/flat.nrrd": ("failed", "same value"),
}


def write_archive(folder: Path, phantom: Path) -> None:
    """Writes the archive into ``folder`` from the CT in the folder ``phantom``."""
    ct = sitk.ReadImage(str(phantom / "ct.nii.gz"))

    def tilt(dataset, index):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y + ct.GetSpacing()[2] * index * float(np.tan(np.radians(10))), z]

    def gap(dataset, index):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y, z + ct.GetSpacing()[2] * (index > 9)]

    def write(name: str, **more):
        write_ct_series(folder / name, ct, **{"patient": name.split("/")[0], **more})

    write("anna/ct", uid="1.2.3.4")
    write_ct_series(folder / "anna/localizer", ct[:, :, :1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write("anna/mr", Modality="MR")
    write("anna/iodine", ImageType=["DERIVED", "PRIMARY", "IODINE"])
    write("bert/mpr", ImageType=["DERIVED", "SECONDARY", "MPR"])
    write("bert/rle", syntax="1.2.840.10008.1.2.5")
    write("bert/tilted", change=tilt)
    write("bert/gap", change=gap)
    # A series UID that another patient has too.
    write("Jürgen Öz/腹部", uid="1.2.3.4", PatientID="Ö-1", SeriesDescription="Bauch, venös")
    write("nameless", SeriesInstanceUID="", SOPInstanceUID="", StudyInstanceUID="", PatientID="")
    (folder / "broken").mkdir()
    whole = next((folder / "anna/ct").iterdir()).read_bytes()
    (folder / "broken/IM00007").write_bytes(whole[:132] + b"\x02\x00\x10\x00UI\xff\xff1.2.840")
    (folder / "broken/empty.dcm").touch()
    plain = folder / "plain"
    plain.mkdir()
    for name in ("ct.nii.gz", "labels.nii.gz"):
        (plain / name).write_bytes((phantom / name).read_bytes())
    content = (phantom / "ct.nii.gz").read_bytes()
    (plain / "torn.nii.gz").write_bytes(content[: len(content) // 2])
    sitk.WriteImage(ct * 0, str(plain / "flat.nrrd"))
    for number in range(30):
        (plain / f"notes{number}.txt").write_text("no image")
