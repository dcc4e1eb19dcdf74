"""A table of unusual inputs that users have met, with the expected outcome of each. ``test_unusual_inputs.py`` tests
them, and Resources/Docs/reference/inputs.md lists them.

To add one, add a line to ``TABLE`` with a function that writes the input into an empty folder and returns the path to
pass to ``dca``; then ``python Testing/unusual_inputs.py`` writes the page again.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.filewriter import write_dataset
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from dcaseg.synthesis.phantom.case import generate
from dicom_archive import moved, write_ct_series, write_enhanced_ct

ACCEPTED, NOTED, REFUSED = "accepted", "accepted with a note", "refused"
PAGE = Path(__file__).parents[1] / "Resources/Docs/reference/inputs.md"

Write = Callable[[Path], Path]


@dataclass(frozen=True)
class UnusualInput:
    """One input. ``group`` and ``what`` describe it on the page; ``words`` must occur in the note or the error.

    ``right`` says whether the voxels must equal those of ``ct()``, ``resample`` whether ``--resample`` is used.
    """

    group: str
    what: str
    verdict: str
    words: str
    write: Write
    right: bool = True
    resample: bool = False

    @property
    def id(self) -> str:
        return f"{self.group}: {self.what}"


@lru_cache(maxsize=1)
def ct() -> sitk.Image:
    """A synthetic person, 6 x 6 x 8 mm, at typical scanner positions."""
    image = generate(3, spacing=(6.0, 6.0, 8.0), orientation="LPS").ct
    image.SetOrigin((-150.5, -140.25, 811.0))
    return image


def hu() -> np.ndarray:
    return sitk.GetArrayFromImage(ct()).astype(np.int16)


def image_of(values: np.ndarray) -> sitk.Image:
    """``values`` (z, y, x), with the origin, spacing and orientation of ``ct()``."""
    image = sitk.GetImageFromArray(values)
    image.SetOrigin(ct().GetOrigin())
    image.SetSpacing(ct().GetSpacing())
    image.SetDirection(ct().GetDirection())
    return image


# NIfTI


def nifti(folder: Path, name: str = "ct.nii.gz", image: sitk.Image | None = None) -> Path:
    sitk.WriteImage(image or ct(), str(folder / name))
    return folder / name


def with_neighbor(other: str, name: str) -> Write:
    """The CT in ``name``, and half of its values in the file ``other``, which a reader may confuse with it."""

    def write(folder: Path) -> Path:
        sitk.WriteImage(image_of((hu() // 2).astype(np.int16)), str(folder / other))
        return nifti(folder, name)

    return write


def renamed(written: str, name: str) -> Write:
    return lambda folder: nifti(folder, written).rename(folder / name)


def nifti2(order: str) -> Write:
    def write(folder: Path) -> Path:
        first = nibabel.load(nifti(folder, "first.nii"))
        header = nibabel.Nifti2Header(endianness=order)
        header.set_data_dtype(np.dtype(f"{order}i2"))
        nibabel.save(nibabel.Nifti2Image(np.asarray(first.dataobj), first.affine, header), folder / "ct.nii.gz")
        (folder / "first.nii").unlink()
        return folder / "ct.nii.gz"

    return write


def patched(*changes: tuple[str, int, list[float]], name: str = "ct.nii") -> Write:
    """A valid file with some header fields overwritten: (struct format, byte offset, values)."""

    def write(folder: Path) -> Path:
        raw = bytearray(nifti(folder, "ct.nii").read_bytes())
        for form, offset, values in changes:
            struct.pack_into(form, raw, offset, *values)
        (folder / "ct.nii").unlink()
        (folder / name).write_bytes(gzip.compress(bytes(raw)) if name.endswith(".gz") else bytes(raw))
        return folder / name

    return write


def sform(change: Callable[[np.ndarray], np.ndarray], qform: bool = True, pixdim: bool = True) -> Write:
    """A file whose sform is ``change`` of the true matrix (4, 4; RAS), with or without the true qform."""

    def write(folder: Path) -> Path:
        affine = np.diag([-6.0, -6.0, 8.0, 1.0])
        affine[:3, 3] = [150.5, 140.25, 811.0]
        matrix = change(affine.copy())
        steps = np.linalg.norm(matrix[:3, :3], axis=0) if pixdim and not qform else [6.0, 6.0, 8.0]
        return patched(("<h", 252, [int(qform)]), ("<3f", 80, list(steps)), ("<12f", 280, matrix[:3].ravel().tolist()))(
            folder
        )

    return write


def mirrored(matrix: np.ndarray) -> np.ndarray:
    matrix[0] *= -1
    return matrix


def shifted(mm: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[1, 3] += mm
        return matrix

    return change


def sheared(share: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[1, 2] += share * 8.0
        return matrix

    return change


def rotated_and_rounded(matrix: np.ndarray) -> np.ndarray:
    angle = np.radians(11.3)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix[:3, :3] = np.round(turn @ matrix[:3, :3], 3)
    return matrix


def endless_gzip(folder: Path) -> Path:
    """A file in which 200 MB of zeros, compressed to 200 kB, follow the voxels."""
    whole = gzip.decompress(nifti(folder).read_bytes())
    (folder / "ct.nii.gz").write_bytes(gzip.compress(whole) + gzip.compress(bytes(200_000_000), compresslevel=9))
    return folder / "ct.nii.gz"


def bomb(folder: Path) -> Path:
    return patched(("<3h", 42, [1700, 1700, 1700]), name="ct.nii.gz")(folder)


def bad_quaternion(folder: Path) -> Path:
    return patched(("<2h", 252, [1, 0]), ("<3f", 256, [1.0, 1.0, 0.0]))(folder)


def more_slices_than_stated(name: str) -> Write:
    """A compressed file with 55 slices whose header states 40."""

    def write(folder: Path) -> Path:
        sitk.WriteImage(ct(), str(folder / name), True)
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw.replace(b"68 54 55", b"68 54 40", 1))
        return folder / name

    return write


def half_of_a_pair(folder: Path) -> Path:
    sitk.WriteImage(ct(), str(folder / "ct.hdr"))
    return (folder / "ct.hdr").rename(folder / "ct.nii")


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "ct.nii.gz")
    return folder / "ct.nii.gz"


# NRRD and MetaImage


def edited(name: str, *changes: tuple[str, str]) -> Write:
    """A valid file with lines of its header replaced; the voxels still follow it."""

    def write(folder: Path) -> Path:
        sitk.WriteImage(ct(), str(folder / name), False)
        raw = (folder / name).read_bytes()
        for line in raw.split(b"\n")[:20]:
            for start, new in changes:
                if line.startswith(start.encode()):
                    raw = raw.replace(line + b"\n", new.encode() + (b"\n" if new else b""), 1)
        (folder / name).write_bytes(raw)
        return folder / name

    return write


def with_data_in(header: str, name: str, data: str) -> Write:
    def write(folder: Path) -> Path:
        key = "data file" if name.endswith(".nhdr") else "ElementDataFile"
        sitk.WriteImage(ct(), str(folder / name), False)
        lines = (folder / name).read_text().splitlines()
        kept = [line for line in lines if not line.startswith((key, "CompressedData"))]
        joint = ": " if name.endswith(".nhdr") else " = "
        (folder / name).write_text("\n".join([*kept, f"{key}{joint}{data}"]) + "\n")
        if data == "pipe.raw":
            os.mkfifo(folder / data)
        return folder / name

    return write


def header_in_upper_case(folder: Path) -> Path:
    sitk.WriteImage(ct(), str(folder / "ct.mhd"), False)
    return (folder / "ct.mhd").rename(folder / "CT.MHD")


def longer_data_file(name: str) -> Write:
    """A header with its voxels in another file, which begins with something that the header does not mention."""

    def write(folder: Path) -> Path:
        sitk.WriteImage(ct(), str(folder / name), False)
        (data,) = (file for file in folder.iterdir() if file.name != name)
        data.write_bytes(bytes(100) + data.read_bytes())
        return folder / name

    return write


def single_volume_sequence(folder: Path) -> Path:
    """A NRRD with a fourth axis, of length one, for the volumes of a sequence, as 3D Slicer writes it."""
    x, y, z = ct().GetSize()
    return edited(
        "ct.nrrd",
        ("dimension", "dimension: 4"),
        ("sizes", f"sizes: 1 {x} {y} {z}"),
        ("space directions", "space directions: none (6,0,0) (0,6,0) (0,0,8)"),
        ("kinds", "kinds: list domain domain domain"),
    )(folder)


def time_axis(name: str, points: int) -> Write:
    """A NRRD whose last axis is time; other programs than 3D Slicer write it there."""

    def write(folder: Path) -> Path:
        x, y, z = ct().GetSize()
        return edited(
            name,
            ("dimension", "dimension: 4"),
            ("sizes", f"sizes: {x} {y} {z // points} {points}"),
            ("space directions", "space directions: (6,0,0) (0,6,0) (0,0,8) none"),
            ("kinds", "kinds: domain domain domain time"),
        )(folder)

    return write


def huge_voxel(folder: Path) -> Path:
    """A NRRD of 64-bit floats with one voxel that 32-bit floats cannot hold."""
    image = sitk.Cast(ct(), sitk.sitkFloat64)
    image[20, 20, 10] = 1e39
    return nifti(folder, "ct.nrrd", image)


def text_voxels(end: str, fewer: int = 0) -> Write:
    """A MetaImage with its voxels as text, which ends with ``end`` and lacks the last ``fewer`` values."""

    def write(folder: Path) -> Path:
        sitk.WriteImage(ct(), str(folder / "ct.mha"), False)
        raw = (folder / "ct.mha").read_bytes()
        header = raw[: raw.index(b"LOCAL") + 6].replace(b"BinaryData = True", b"BinaryData = False")
        values = sitk.GetArrayFromImage(ct()).ravel().tolist()
        text = " ".join(str(value) for value in values[: len(values) - fewer])
        (folder / "ct.mha").write_bytes(header + text.encode() + end.encode())
        return folder / "ct.mha"

    return write


def added(name: str, before: str, *lines: str) -> Write:
    """A valid file with lines added to its header before the line that starts with ``before``."""

    def write(folder: Path) -> Path:
        sitk.WriteImage(ct(), str(folder / name), False)
        raw = (folder / name).read_bytes()
        text = "".join(f"{line}\n" for line in lines).encode()
        (folder / name).write_bytes(raw.replace(f"\n{before}".encode(), b"\n" + text + before.encode(), 1))
        return folder / name

    return write


# Values


def values(change: Callable[[np.ndarray], np.ndarray]) -> Write:
    return lambda folder: nifti(folder, image=image_of(change(hu().astype(np.float32)).astype(np.float32)))


def padded(
    value: float, change: Callable[[np.ndarray], np.ndarray] = lambda hu: hu
) -> Callable[[np.ndarray], np.ndarray]:
    """The CT with ``value`` outside the round field of view."""

    def with_padding(array: np.ndarray) -> np.ndarray:
        _, y, x = np.indices(array.shape)
        middle = (np.array(array.shape[1:]) - 1) / 2
        radius = np.hypot((y - middle[0]) / middle[0], (x - middle[1]) / middle[1])
        return np.where(radius > 1.1, value, change(array))

    return with_padding


def with_slices(change: Callable[[np.ndarray], object]) -> Write:
    """The CT with ``change`` of its slices 21 to 30, given with the slice before them."""

    def changed(array: np.ndarray) -> np.ndarray:
        array[20:30] = change(array[19])
        return array

    return values(changed)


def shuffled(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(array)


def every_other_slice_mirrored(array: np.ndarray) -> np.ndarray:
    array[::2] = array[::2, :, ::-1]
    return array


def without_middle(array: np.ndarray) -> np.ndarray:
    """The CT without 12 slices (96 mm)."""
    return np.delete(array, slice(20, 32), axis=0)


def lower_half_blank(array: np.ndarray) -> np.ndarray:
    array[: len(array) // 2] = -1024
    return array


def noise(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(-300, 400, array.shape)


def one_voxel(value: float) -> Write:
    def changed(array: np.ndarray) -> np.ndarray:
        array[20, 20, 20] = value
        return array

    return values(changed)


def filled(value: float) -> Write:
    """The CT with ``value`` in place of the air around the body, as far as it reaches a corner of the volume."""

    def write(folder: Path) -> Path:
        air = sitk.ConnectedThreshold(ct(), [(0, 0, 0)], -1100, -900, 1)
        array = np.where(sitk.GetArrayViewFromImage(air) > 0, np.float32(value), hu())
        return nifti(folder, image=image_of(array.astype(np.float32)))

    return write


# DICOM


def series(**more: object) -> Write:
    def write(folder: Path) -> Path:
        write_ct_series(folder / "ct", ct(), **more)
        return folder / "ct"

    return write


def without(name: str, only: int | None = None) -> Callable[[pydicom.Dataset, int], None]:
    def change(dataset: pydicom.Dataset, index: int) -> None:
        if only is None or index == only:
            delattr(dataset, name)

    return change


def rewritten(change: Callable[[bytes], bytes], every: int = 3) -> Write:
    """A series with the bytes of every third file changed, as in an archive merged from two systems."""

    def write(folder: Path) -> Path:
        for number, file in enumerate(sorted(series()(folder).iterdir())):
            if number % every == 0:
                file.write_bytes(change(file.read_bytes()))
        return folder / "ct"

    return write


def data_set_alone(implicit: bool) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(raw))
        plain = pydicom.Dataset({element.tag: element for element in dataset})
        stream = pydicom.filebase.DicomBytesIO()
        stream.is_implicit_VR, stream.is_little_endian = implicit, True
        write_dataset(stream, plain)
        return stream.getvalue()

    return change


def monochrome1(signed: bool, syntax: str | None = None) -> Write:
    """A series labeled MONOCHROME1 that stores HU + 1024, or HU."""

    def change(dataset: pydicom.Dataset, index: int) -> None:
        if not signed:
            dataset.PixelRepresentation, dataset.RescaleIntercept = 0, -1024
            stored = np.frombuffer(dataset.PixelData, "<i2").astype(np.int32) + 1024
            dataset.PixelData = stored.astype("<u2").tobytes()
        dataset.PhotometricInterpretation = "MONOCHROME1"

    return series(change=change, syntax=syntax)


def with_page(**attributes: object) -> Write:
    """A series with an extra image made from the first slice."""

    def write(folder: Path) -> Path:
        files = sorted(series()(folder).iterdir())
        page = pydicom.dcmread(files[0])
        page.SOPInstanceUID = page.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for name, value in attributes.items():
            if value is None:
                delattr(page, name)
            else:
                setattr(page, name, value)
        page.save_as(folder / "ct/page")
        return folder / "ct"

    return write


def dose_page(folder: Path) -> Path:
    side = 40
    return with_page(
        ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"], ImagePositionPatient=None, ImageOrientationPatient=None,
        Rows=side, Columns=side, PixelData=bytes(2 * side * side),
    )(folder)  # fmt: skip


def enhanced(folder: Path) -> Path:
    write_ct_series(folder / "slices", ct())
    write_enhanced_ct(folder / "ct", folder / "slices")
    return folder / "ct"


def enhanced_file(folder: Path) -> Path:
    return next(enhanced(folder).iterdir())


def enhanced_with(change: Callable[[pydicom.Dataset], None]) -> Write:
    """An enhanced CT that ``change`` has changed, with the conversion to HU stated for each frame."""

    def write(folder: Path) -> Path:
        file = enhanced_file(folder)
        dataset = pydicom.dcmread(file)
        shared = dataset.SharedFunctionalGroupsSequence[0]
        conversion = shared.PixelValueTransformationSequence
        del shared.PixelValueTransformationSequence
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PixelValueTransformationSequence = deepcopy(conversion)
        change(dataset)
        dataset.save_as(file)
        return file

    return write


def atomic_numbers(dataset: pydicom.Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PixelValueTransformationSequence[0].RescaleType = "Z_EFF"


def another_shared_conversion(dataset: pydicom.Dataset) -> None:
    frame = dataset.PerFrameFunctionalGroupsSequence[0]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelValueTransformationSequence = deepcopy(frame.PixelValueTransformationSequence)
    shared.PixelValueTransformationSequence[0].RescaleIntercept = 100


def no_acquisition_in_some(dataset: pydicom.Dataset, index: int) -> None:
    if index % 2:
        del dataset.AcquisitionNumber


def phases_in_pairs(dataset: pydicom.Dataset, index: int) -> None:
    dataset.AcquisitionTime = "101112" if index % 4 < 2 else "101512"


def alternating(**attributes: tuple[str, str]) -> Write:
    """A series whose even and odd slices differ in ``attributes``, as two contrast phases do."""

    def change(dataset: pydicom.Dataset, index: int) -> None:
        for name, values in attributes.items():
            setattr(dataset, name, values[index % 2])

    return series(change=change)


def one_slice(**attributes: object) -> Write:
    def change(dataset: pydicom.Dataset, index: int) -> None:
        for name, value in attributes.items() if index == 7 else ():
            setattr(dataset, name, value)

    return series(change=change)


def floating(dataset: pydicom.Dataset, index: int) -> None:
    voxels = np.frombuffer(dataset.PixelData, "<i2").astype("<f4").tobytes()
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, voxels


def declared_implicit(raw: bytes) -> bytes:
    """Explicit VR, but the meta header declares implicit VR."""
    return raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)


def last_slice(content: Callable[[bytes], bytes]) -> Write:
    """A series with the content of its last file changed, which no gap in the positions shows."""

    def write(folder: Path) -> Path:
        files = sorted(series()(folder).iterdir(), key=lambda file: pydicom.dcmread(file).InstanceNumber)
        files[-1].write_bytes(content(files[-1].read_bytes()))
        return folder / "ct"

    return write


def own_series(dataset: pydicom.Dataset, index: int) -> None:
    dataset.SeriesInstanceUID = generate_uid()


def own_frame(dataset: pydicom.Dataset, index: int) -> None:
    dataset.FrameOfReferenceUID = generate_uid()


def tilted(degrees: float) -> Write:
    return series(change=moved(1, lambda index: 8.0 * index * math.tan(math.radians(degrees))))


def uneven(folder: Path) -> Path:
    return series(change=moved(2, lambda index: 3.0 * (index > 9)))(folder)


def two_patients(folder: Path) -> Path:
    """Two patients with one series UID; the second scan begins where the first one ends."""
    above = sitk.Image(ct())
    above.SetOrigin(ct().TransformIndexToPhysicalPoint((0, 0, ct().GetDepth())))
    write_ct_series(folder / "ct", ct(), uid="1.2.3.4", study="1.2.5", patient="P1")
    write_ct_series(folder / "ct", above, uid="1.2.3.4", study="1.2.6", patient="P2", stem="XX")
    return folder / "ct"


def spacing_that_changes(mm: float) -> Write:
    """A series in which the slices of the upper half are farther apart by ``mm``."""
    return series(change=moved(2, lambda index: mm * max(0, index - ct().GetDepth() // 2)))


def jittered(dataset: pydicom.Dataset, index: int) -> None:
    """Cosines that differ by 2e-5, on the two sides of a border of rounding."""
    sine = 0.00501 if index % 2 else 0.00499
    dataset.ImageOrientationPatient = ["0.9999875", f"{sine}", "0", f"{-sine}", "0.9999875", "0"]


def cut_file(folder: Path) -> Path:
    files = sorted(series()(folder).iterdir())
    files[4].write_bytes(files[4].read_bytes()[:-100])
    return folder / "ct"


# Header and anatomy


def header_says(change: Callable[[sitk.Image], None]) -> Write:
    def write(folder: Path) -> Path:
        image = sitk.Image(ct())
        change(image)
        sitk.WriteImage(image, str(folder / "ct.nrrd"))
        return folder / "ct.nrrd"

    return write


def direction(*values: float) -> Callable[[sitk.Image], None]:
    return lambda image: image.SetDirection(values)


def lost_geometry(image: sitk.Image) -> None:
    image.SetSpacing((1, 1, 1))
    image.SetOrigin((0, 0, 0))


def at_a_quarter(image: sitk.Image) -> None:
    image.SetSpacing([step * 0.25 for step in image.GetSpacing()])


_NOT_TRUE = {"right": False}

TABLE = (
    UnusualInput("NIfTI", "`ct.nii.gz` with another `ct.nii` next to it", ACCEPTED, "", with_neighbor("ct.nii", "ct.nii.gz")),
    UnusualInput("NIfTI", "`ct.nii` with another `ct.nii.gz` next to it", ACCEPTED, "", with_neighbor("ct.nii.gz", "ct.nii")),
    UnusualInput("NIfTI", "`ct.nii.gz` with another pair `ct.hdr`, `ct.img` next to it", ACCEPTED, "", with_neighbor("ct.hdr", "ct.nii.gz")),
    UnusualInput("NIfTI", "the `.hdr` of a pair, called `.nii`", REFUSED, "header of a pair", half_of_a_pair),
    UnusualInput("NIfTI", "compressed with gzip, but named `.nii`", ACCEPTED, "", renamed("ct.nii.gz", "ct.nii")),
    UnusualInput("NIfTI", "not compressed, but named `.nii.gz`", ACCEPTED, "", renamed("ct.nii", "ct.nii.gz")),
    UnusualInput("NIfTI", "version 2, little endian", ACCEPTED, "", nifti2("<")),
    UnusualInput("NIfTI", "version 2, big endian", ACCEPTED, "", nifti2(">")),
    UnusualInput("NIfTI", "sform is the mirror image of the qform", REFUSED, "sform and its qform", sform(mirrored)),
    UnusualInput("NIfTI", "sform shifted by 40 mm against the qform", REFUSED, "shifted by 40 mm", sform(shifted(40))),
    UnusualInput("NIfTI", "sform sheared against the qform", REFUSED, "sform and its qform", sform(sheared(0.2))),
    UnusualInput("NIfTI", "sform and qform differ by 0.3 voxels", NOTED, "sform and qform differ", sform(shifted(1.8)), **_NOT_TRUE),
    UnusualInput("NIfTI", "sform and qform differ by rounding", ACCEPTED, "", sform(shifted(0.01))),
    UnusualInput("NIfTI", "sform and pixdim state different spacings", REFUSED, "pixdim of 6 x 6 x 8", sform(lambda m: m @ np.diag([0.5, 0.5, 0.5, 1]), qform=False, pixdim=False)),
    UnusualInput("NIfTI", "oblique affine rounded to three digits", ACCEPTED, "", sform(rotated_and_rounded, qform=False), **_NOT_TRUE),
    UnusualInput("NIfTI", "sheared by less than half a voxel", NOTED, "not quite at right angles", sform(sheared(0.008), qform=False), **_NOT_TRUE),
    UnusualInput("NIfTI", "sheared by a gantry tilt", REFUSED, "not at right angles", sform(sheared(0.25), qform=False)),
    UnusualInput("NIfTI", "sheared by a gantry tilt, `--resample`", NOTED, "resampled to a right-angled grid", sform(sheared(0.25), qform=False), right=False, resample=True),
    UnusualInput("NIfTI", "no qform and no sform", REFUSED, "does not state the orientation", patched(("<2h", 252, [0, 0]))),
    UnusualInput("NIfTI", "a qform that is not a rotation", REFUSED, "not a valid matrix", bad_quaternion),
    UnusualInput("NIfTI", "a spacing of 0", REFUSED, "impossible voxel spacing", patched(("<f", 80, [0.0]))),
    UnusualInput("NIfTI", "geometry in meters that is in mm", REFUSED, "impossible voxel spacing", patched(("<B", 123, [1]))),
    UnusualInput("NIfTI", "an infinite vox_offset", REFUSED, "damaged", patched(("<f", 108, [float("inf")]))),
    UnusualInput("NIfTI", "a vox_offset inside the header", REFUSED, "damaged", patched(("<f", 108, [0.0]))),
    UnusualInput("NIfTI", "a header that states 1700 x 1700 x 1700 voxels", REFUSED, "more than the limit", bomb),
    UnusualInput("NIfTI", "gzip data that continue after the voxels", REFUSED, "much larger than its header", endless_gzip),
    UnusualInput("NIfTI", "a header that states 40 of 55 slices", REFUSED, "slices would be lost", patched(("<h", 46, [40]))),
    UnusualInput("NIfTI", "a header that states 40 of 55 slices, compressed", REFUSED, "slices would be lost", patched(("<h", 46, [40]), name="ct.nii.gz")),
    UnusualInput("NIfTI", "two volumes of which the header hides one", REFUSED, "slices would be lost", patched(("<h", 46, [27]), ("<h", 48, [2]))),
    UnusualInput("NIfTI", "a voxel type and a `bitpix` that contradict each other", REFUSED, "but its bitpix is 32", patched(("<h", 72, [32]))),
    UnusualInput("NIfTI", "a named pipe", REFUSED, "not a regular file", pipe),
    UnusualInput("NRRD", "no `space origin`", NOTED, "origin was set to 0", edited("ct.nrrd", ("space origin", "")), **_NOT_TRUE),
    UnusualInput("NRRD", "`space units` of cm", REFUSED, "'space units' are cm", edited("ct.nrrd", ("space:", 'space: left-posterior-superior\nspace units: "cm" "cm" "cm"'))),
    UnusualInput("NRRD", "a fourth axis of length one (a sequence with a single volume)", ACCEPTED, "", single_volume_sequence),
    UnusualInput("NRRD", "a time axis of length one", ACCEPTED, "", time_axis("ct.nrrd", 1)),
    UnusualInput("NRRD", "a time axis of length one, with a data file", ACCEPTED, "", time_axis("ct.nhdr", 1)),
    UnusualInput("NRRD", "a time axis of length five", REFUSED, "4D series of 5 volumes", time_axis("ct.nrrd", 5)),
    UnusualInput("NRRD", "voxels in a data file with letters such as ü in its name", ACCEPTED, "", lambda folder: nifti(folder, "Bauch_ü.nhdr")),
    UnusualInput("NRRD", "a voxel of 1e39 in 64-bit floats", REFUSED, "without a finite value", huge_voxel),
    UnusualInput("NRRD", "no `space directions`", REFUSED, "the size of its voxels", edited("ct.nrrd", ("space directions", ""))),
    UnusualInput("NRRD", "a header that states 1700 x 1700 x 1700 voxels", REFUSED, "more than the limit", edited("ct.nrrd", ("sizes", "sizes: 1700 1700 1700"))),
    UnusualInput("NRRD", "a dimension of 100", REFUSED, "damaged", edited("ct.nrrd", ("dimension", "dimension: 100"))),
    UnusualInput("NRRD", "voxels in `/dev/zero`", REFUSED, "outside of its own folder", with_data_in("data file", "ct.nhdr", "/dev/zero")),
    UnusualInput("NRRD", "voxels in several files", REFUSED, "several files", with_data_in("data file", "ct.nhdr", "LIST")),
    UnusualInput("NRRD", "compressed with bzip2", REFUSED, "encoding 'bzip2'", edited("ct.nrrd", ("encoding", "encoding: bzip2"))),
    UnusualInput("NRRD", "a data file that is longer than stated", REFUSED, "bytes of voxels", longer_data_file("ct.nhdr")),
    UnusualInput("NRRD", "a header that states 40 of 55 slices, compressed", REFUSED, "slices would be lost", more_slices_than_stated("ct.nrrd")),
    UnusualInput("MetaImage", "an extension in upper case", ACCEPTED, "", renamed("ct.mha", "CT.MHA")),
    UnusualInput("MetaImage", "an extension in upper case, with a data file", ACCEPTED, "", header_in_upper_case),
    UnusualInput("MetaImage", "`ElementSpacing` twice, with different values", REFUSED, "'ElementSpacing' twice", added("ct.mha", "ElementDataFile", "ElementSpacing = 1 1 1")),
    UnusualInput("MetaImage", "`Offset` and `Position` that differ", REFUSED, "'Offset' and 'Position'", added("ct.mha", "ElementDataFile", "Position = 1 2 3")),
    UnusualInput("MetaImage", "`ElementSize` and `ElementSpacing` that differ (slices with gaps)", ACCEPTED, "", added("ct.mha", "ElementDataFile", "ElementSize = 6 6 5")),
    UnusualInput("MetaImage", "a header that states 40 of 55 slices, compressed", REFUSED, "slices would be lost", more_slices_than_stated("ct.mha")),
    UnusualInput("MetaImage", "`NDims` of 100", REFUSED, "damaged", edited("ct.mha", ("NDims", "NDims = 100"))),
    UnusualInput("MetaImage", "no `ElementSpacing`", REFUSED, "the size of its voxels", edited("ct.mha", ("ElementSpacing", ""))),
    UnusualInput("MetaImage", "no `Offset`", NOTED, "origin was set to 0", edited("ct.mha", ("Offset", "")), **_NOT_TRUE),
    UnusualInput("MetaImage", "a header that states 1700 x 1700 x 1700 voxels", REFUSED, "more than the limit", edited("ct.mha", ("DimSize", "DimSize = 1700 1700 1700"))),
    UnusualInput("MetaImage", "voxels in `/dev/zero`", REFUSED, "outside of its own folder", with_data_in("ElementDataFile", "ct.mhd", "/dev/zero")),
    UnusualInput("MetaImage", "voxels in a data file with letters such as ü in its name", ACCEPTED, "", lambda folder: nifti(folder, "Bauch_ü.mhd")),
    UnusualInput("MetaImage", "voxels in a named pipe", REFUSED, "not a regular file", with_data_in("ElementDataFile", "ct.mhd", "pipe.raw")),
    UnusualInput("MetaImage", "`ElementDataFile = LIST`", REFUSED, "several files", with_data_in("ElementDataFile", "ct.mhd", "LIST")),
    UnusualInput("MetaImage", "a data file that is longer than stated", REFUSED, "bytes of voxels", longer_data_file("ct.mhd")),
    UnusualInput("MetaImage", "`DistanceUnits` of cm", REFUSED, "'DistanceUnits' are cm", added("ct.mha", "ElementDataFile", "DistanceUnits = cm")),
    UnusualInput("MetaImage", "values that must be rescaled", REFUSED, "stores values that must be converted", added("ct.mha", "ElementDataFile", "ElementToIntensityFunctionSlope = 1.2")),
    UnusualInput("MetaImage", "voxels as text", ACCEPTED, "", text_voxels("\n")),
    UnusualInput("MetaImage", "voxels as text, without a newline at the end", REFUSED, "incomplete", text_voxels("")),
    UnusualInput("MetaImage", "voxels as text, the last two missing", REFUSED, "incomplete", text_voxels("\n", 2)),
    UnusualInput("MetaImage", "`AnatomicalOrientation` and `TransformMatrix` that differ", NOTED, "TransformMatrix means RAI", edited("ct.mha", ("AnatomicalOrientation", "AnatomicalOrientation = LAI"))),
    UnusualInput("MetaImage", "`AnatomicalOrientation` LPS for RAI", ACCEPTED, "", edited("ct.mha", ("AnatomicalOrientation", "AnatomicalOrientation = LPS"))),
    UnusualInput("MetaImage", "`Modality` MR", NOTED, "its Modality is MR", added("ct.mha", "ElementDataFile", "Modality = MET_MOD_MR")),
    UnusualInput("MetaImage", "a `TransformMatrix` of zeros", REFUSED, "do not span three dimensions", edited("ct.mha", ("TransformMatrix", "TransformMatrix = 0 0 0 0 0 0 0 0 0"))),
    UnusualInput("Values", "HU, padded with -2000 outside the field of view", ACCEPTED, "", values(padded(-2000)), **_NOT_TRUE),
    UnusualInput("Values", "HU, 0 outside the field of view", NOTED, "filled with the value 0", filled(0), **_NOT_TRUE),
    UnusualInput("Values", "HU, 3071 outside the field of view", NOTED, "filled with the value 3071", filled(3071), **_NOT_TRUE),
    UnusualInput("Values", "HU, 64511 outside the field of view", NOTED, "filled with the value 64511", filled(64511), **_NOT_TRUE),
    UnusualInput("Values", "HU, -3.4e38 outside the field of view", NOTED, "far below air", values(padded(float(np.finfo(np.float32).min))), **_NOT_TRUE),
    UnusualInput("Values", "HU, with a voxel of 1e6", REFUSED, "values up to 1e+06", one_voxel(1e6)),
    UnusualInput("Values", "HU, ten slices within the scan are blank", NOTED, "Slices 21 to 30 are blank", with_slices(lambda before: -1024), **_NOT_TRUE),
    UnusualInput("Values", "HU, ten slices within the scan are copies", NOTED, "Slices 21 to 30 are copies of slice 20", with_slices(lambda before: before), **_NOT_TRUE),
    UnusualInput("Values", "HU, the lower half of the slices is blank", NOTED, "Slices 1 to 27 are blank", values(lower_half_blank), **_NOT_TRUE),
    UnusualInput("Values", "HU, slices in random order", NOTED, "slices may be out of order", values(shuffled), **_NOT_TRUE),
    UnusualInput("Values", "HU, every other slice mirrored", NOTED, "slices may be out of order or mirrored", values(every_other_slice_mirrored), **_NOT_TRUE),
    UnusualInput("Values", "HU, 96 mm of the slices cut out", NOTED, "anatomy changes abruptly", values(without_middle), **_NOT_TRUE),
    UnusualInput("Values", "noise with the values of a CT", NOTED, "the image may not be a CT", values(noise), **_NOT_TRUE),
    UnusualInput("Values", "HU x 0.9 (not calibrated)", NOTED, "instead of about -1000", values(lambda a: np.rint(a * 0.9)), **_NOT_TRUE),
    UnusualInput("Values", "HU, saved as signed 8-bit values", NOTED, "as after an export with 8 bits", values(lambda a: np.clip(a, -128, 127)), **_NOT_TRUE),
    UnusualInput("Values", "stored values (HU + 1024), padded with -2000", REFUSED, "HU + 1024", values(padded(-2000, lambda a: np.maximum(a, -1024) + 1024))),
    UnusualInput("Values", "HU x 2", REFUSED, "HU x 2", values(lambda a: a * 2)),
    UnusualInput("Values", "HU x 2, padded with -2000", REFUSED, "HU x 2", values(padded(-2000, lambda a: a * 2))),
    UnusualInput("Values", "HU / 2", REFUSED, "HU / 2", values(lambda a: a / 2)),
    UnusualInput("Values", "HU x 10", REFUSED, "HU x 10", values(lambda a: a * 10)),
    UnusualInput("Values", "HU - 1024 (rescaled twice)", REFUSED, "rescale intercept had been applied twice", values(lambda a: a - 1024)),
    UnusualInput("Values", "HU + 1000", REFUSED, "HU + 1000", values(lambda a: a + 1000)),
    UnusualInput("Values", "HU / 16", REFUSED, "HU / 16", values(lambda a: a / 16)),
    UnusualInput("Values", "inverted HU (HU x -1)", REFUSED, "inverted HU", values(lambda a: -a)),
    UnusualInput("Values", "scaled to 0 to 1", REFUSED, "looks normalized", values(lambda a: np.clip((a + 160) / 400, 0, 1))),
    UnusualInput("Values", "clipped to a window of -160 to 240 HU", ACCEPTED, "", values(lambda a: np.clip(a, -160, 240)), **_NOT_TRUE),
    UnusualInput("DICOM", "no PixelSpacing", REFUSED, "no PixelSpacing", series(change=without("PixelSpacing"))),
    UnusualInput("DICOM", "no PixelSpacing in one slice", REFUSED, "no PixelSpacing in 1 of", series(change=without("PixelSpacing", 7))),
    UnusualInput("DICOM", "no PixelSpacing, but ImagerPixelSpacing", REFUSED, "no PixelSpacing", series(change=without("PixelSpacing"), ImagerPixelSpacing=["6", "6"])),
    UnusualInput("DICOM", "another PixelSpacing in one slice", REFUSED, "different PixelSpacing", one_slice(PixelSpacing=["6.5", "6.5"])),
    UnusualInput("DICOM", "an ImageOrientationPatient of zeros", REFUSED, "impossible ImageOrientationPatient", series(ImageOrientationPatient=["0"] * 6)),
    UnusualInput("DICOM", "an ImageOrientationPatient that is not at right angles", REFUSED, "impossible ImageOrientationPatient", series(ImageOrientationPatient=["1", "0", "0", "0.3", "0.95", "0"])),
    UnusualInput("DICOM", "no RescaleIntercept", REFUSED, "no RescaleIntercept", series(change=without("RescaleIntercept"))),
    UnusualInput("DICOM", "no RescaleSlope", REFUSED, "no RescaleSlope", series(change=without("RescaleSlope"))),
    UnusualInput("DICOM", "no ImagePositionPatient", REFUSED, "no ImagePositionPatient", series(change=without("ImagePositionPatient"))),
    UnusualInput("DICOM", "no ImageOrientationPatient", REFUSED, "no ImageOrientationPatient", series(change=without("ImageOrientationPatient"))),
    UnusualInput("DICOM", "some files without preamble", ACCEPTED, "", rewritten(lambda raw: raw[128:])),
    UnusualInput("DICOM", "some files without preamble and `DICM`", ACCEPTED, "", rewritten(lambda raw: raw[132:])),
    UnusualInput("DICOM", "some files without meta header, implicit VR", ACCEPTED, "", rewritten(data_set_alone(True))),
    UnusualInput("DICOM", "some files without meta header, explicit VR", ACCEPTED, "", rewritten(data_set_alone(False))),
    UnusualInput("DICOM", "no file with a meta header", ACCEPTED, "", rewritten(data_set_alone(True), every=1)),
    UnusualInput("DICOM", "some files declare implicit VR, but have explicit VR", ACCEPTED, "", rewritten(declared_implicit)),
    UnusualInput("DICOM", "the last slice is an empty file", NOTED, "named like the slices but not DICOM", last_slice(lambda raw: b""), **_NOT_TRUE),
    UnusualInput("DICOM", "the last slice is compressed with gzip", NOTED, "named like the slices but not DICOM", last_slice(gzip.compress), **_NOT_TRUE),
    UnusualInput("DICOM", "floating-point voxels", ACCEPTED, "", series(change=floating)),
    UnusualInput("DICOM", "signed voxels declared unsigned in one slice", REFUSED, "been read as unsigned", one_slice(PixelRepresentation=0)),
    UnusualInput("DICOM", "an effective atomic number map", REFUSED, "not in HU", series(RescaleType="Z_EFF")),
    UnusualInput("DICOM", "an effective atomic number map as an enhanced CT", REFUSED, "not in HU", enhanced_with(atomic_numbers)),
    UnusualInput("DICOM", "an iodine map", NOTED, "computed from dual-energy data (IODINE)", series(ImageType=["DERIVED", "SECONDARY", "AXIAL", "IODINE"])),
    UnusualInput("DICOM", "an enhanced CT with two different rescale intercepts for a frame", REFUSED, "two different rescale", enhanced_with(another_shared_conversion)),
    UnusualInput("DICOM", "a RescaleIntercept of 1e10", REFUSED, "values up to 1e+10", series(RescaleIntercept="1e10")),
    UnusualInput("DICOM", "MONOCHROME1, unsigned", ACCEPTED, "", monochrome1(False)),
    UnusualInput("DICOM", "MONOCHROME1, signed", ACCEPTED, "", monochrome1(True)),
    UnusualInput("DICOM", "MONOCHROME1, unsigned, compressed (RLE)", ACCEPTED, "", monochrome1(False, RLELossless)),
    UnusualInput("DICOM", "MONOCHROME1, signed, compressed (JPEG 2000)", ACCEPTED, "", monochrome1(True, JPEG2000Lossless)),
    UnusualInput("DICOM", "a dose report among the slices", NOTED, "left out", dose_page),
    UnusualInput("DICOM", "a secondary capture among the slices", NOTED, "left out", with_page(SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None)),
    UnusualInput("DICOM", "a localizer (scout) among the slices", NOTED, "left out", with_page(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    UnusualInput("DICOM", "a localizer (scout) that is not marked as one", NOTED, "left out", with_page(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    UnusualInput("DICOM", "a slice twice, with a new UID", NOTED, "1 duplicate slice", with_page()),
    UnusualInput("DICOM", "two different slices at one position", REFUSED, "same positions", with_page(RescaleIntercept=5)),
    UnusualInput("DICOM", "two acquisitions whose slices alternate", REFUSED, "acquisition", alternating(AcquisitionNumber=("1", "2"))),
    UnusualInput("DICOM", "two contrast phases whose slices alternate", REFUSED, "acquired alternately", alternating(AcquisitionTime=("101112", "101512"))),
    UnusualInput("DICOM", "two contrast phases that alternate in pairs of slices", REFUSED, "acquired alternately", series(change=phases_in_pairs)),
    UnusualInput("DICOM", "no AcquisitionNumber in every other slice", ACCEPTED, "", series(change=no_acquisition_in_some)),
    UnusualInput("DICOM", "a different frame of reference in each slice", NOTED, "different frames of reference", series(change=own_frame)),
    UnusualInput("DICOM", "slices that drift to the side by 0.8 pixels", NOTED, "drift to the side", series(change=moved(0, lambda index: 4.8 * index / (ct().GetDepth() - 1))), **_NOT_TRUE),
    UnusualInput("DICOM", "a different series UID in each slice", NOTED, "different series UIDs", series(change=own_series)),
    UnusualInput("DICOM", "two patients with the same series UID", REFUSED, "contains 2 series", two_patients),
    UnusualInput("DICOM", "axes that differ by rounding", ACCEPTED, "", series(change=jittered), **_NOT_TRUE),
    UnusualInput("DICOM", "a slice missing", REFUSED, "is missing 1 slice", series(change=moved(2, lambda index: 8.0 * (index > 9)))),
    UnusualInput("DICOM", "a file cut off within its voxels", REFUSED, "incomplete or damaged", cut_file),
    UnusualInput("DICOM", "gantry tilted by 12 degrees", REFUSED, "tilted by 12.0 degrees", tilted(12)),
    UnusualInput("DICOM", "gantry tilted by 12 degrees, `--resample`", NOTED, "tilted by 12.0 degrees", tilted(12), right=False, resample=True),
    UnusualInput("DICOM", "unevenly spaced slices", REFUSED, "unevenly spaced", uneven),
    UnusualInput("DICOM", "unevenly spaced slices, `--resample`", NOTED, "8 to 11 mm apart", uneven, right=False, resample=True),
    UnusualInput("DICOM", "a slice spacing that grows by 0.1 mm, so that slices are up to 0.2 of their distance off", NOTED, "not quite evenly spaced", spacing_that_changes(0.1), **_NOT_TRUE),
    UnusualInput("DICOM", "a slice spacing that grows by 0.39 mm, so that slices are off by more than half of their distance", REFUSED, "unevenly spaced", spacing_that_changes(0.39)),
    UnusualInput("DICOM", "a slice spacing that grows by 0.39 mm, `--resample`", NOTED, "8 to 8.39 mm apart", spacing_that_changes(0.39), right=False, resample=True),
    UnusualInput("DICOM", "enhanced multi-frame CT, as a folder", ACCEPTED, "", enhanced),
    UnusualInput("Header", "spacing a quarter of the true one", NOTED, "wide, which is impossible", header_says(at_a_quarter), **_NOT_TRUE),
    UnusualInput("Header", "1 x 1 x 1 mm at origin 0 (no geometry)", NOTED, "lost their geometry", header_says(lost_geometry), **_NOT_TRUE),
    UnusualInput("Header", "back and front swapped", NOTED, "back and front were swapped", header_says(direction(1, 0, 0, 0, -1, 0, 0, 0, 1)), **_NOT_TRUE),
    UnusualInput("Header", "left-right and back-front axes swapped", NOTED, "deeper", header_says(direction(0, 1, 0, 1, 0, 0, 0, 0, 1)), **_NOT_TRUE),
)  # fmt: skip


def page() -> str:
    """The content of Resources/Docs/reference/inputs.md."""
    lines = [
        "# Unusual inputs: accepted, noted or refused",
        "",
        "Each row is tested (`Testing/unusual_inputs.py`). The last column quotes part of the message. Notes appear in the",
        "terminal, in `log.txt`, in the panel and in the cohort's report. Without a note, the voxels are exactly those of the file, at the positions that its header states.",
        "",
        "Images with more than 2^30 voxels, as stored or as resampled, are refused before memory is allocated. The",
        "environment variable `DCA_MAX_VOXELS` sets another limit (a number of voxels, such as `2e9`).",
        "",
        "After the segmentation, the result itself is checked. A note reports organs on the wrong side of each other",
        "(the liver left of the spleen, the bladder above the kidneys), organs that are too long, volumes that are mostly",
        "far from those of adults, and a result without any organ. This detects what the CT alone does not show: flipped",
        "axes (left and right, head and feet) and a wrong distance between slices.",
        "",
        "Where the value 0, or one that no tissue has, fills the outside of the field of view, it is read as air",
        "(-1024 HU), with a note, and so are values below -32768. Other low values, such as -2000, stay as they are.",
        "",
    ]
    for group in dict.fromkeys(item.group for item in TABLE):
        lines += [f"## {group}", "", "| Input | Result | Part of the message |", "|---|---|---|"]
        lines += [f"| {item.what} | {item.verdict} | {item.words} |" for item in TABLE if item.group == group]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
